"""Cursors, and pages of one recommendation over HTTP, with the engine in this process and in one of its own."""

from __future__ import annotations

import zlib
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from recsys.errors import InputError
from recsys.event_log import read_exposures
from serving.app import create_app
from serving.errors import ErrorBody
from serving.paging import MAX_CURSOR, MOST_SHOWN, Page, read_cursor
from serving.schemas import RecommendAnswer
from serving.settings import Settings

ELIGIBLE = {f"item-{n:02d}" for n in range(5, 48)}
identifiers = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
pages = st.builds(
    Page, identifiers, st.integers(1, MOST_SHOWN), st.lists(identifiers, min_size=1, max_size=40, unique=True)
)


@given(page=pages)
def test_a_cursor_is_read_as_it_was_written(page: Page) -> None:
    text = page.cursor()
    assert read_cursor(text) == page
    assert len(text) <= MAX_CURSOR


@given(page=pages, place=st.integers(0, 10**6), letter=st.sampled_from("AZaz09-_"), cut=st.booleans())
def test_a_damaged_cursor_is_refused(page: Page, place: int, letter: str, *, cut: bool) -> None:
    text = page.cursor()
    place %= len(text)
    damaged = text[:place] if cut else text[:place] + letter + text[place + 1 :]
    read = None
    with suppress(InputError):
        read = read_cursor(damaged)
    assert read is None or read == page  # the last letter has bits that mean nothing


@given(text=st.text(max_size=60))
@example("")
@example("A" * (MAX_CURSOR + 1))
@example("AAAA\n")
@example("\ud800")
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        read_cursor(text)
    assert caught.value.field == "cursor"


DEFLATED, PLAIN = b"\x01", b"\x02"


def forged(value: Any, *, head: bytes = DEFLATED) -> str:
    packer = zlib.compressobj(9, zlib.DEFLATED, -13)
    data = value if isinstance(value, bytes) else msgspec.msgpack.encode(value)
    body = {DEFLATED: packer.compress(data) + packer.flush()}.get(head, data)
    return urlsafe_b64encode(head + zlib.crc32(body).to_bytes(4, "little") + body).rstrip(b"=").decode()


FORGED = [
    ["r", 1, []],
    ["r", 0, ["a"]],
    ["r", 501, ["a"]],
    ["r", -1, ["a"]],
    ["", 1, ["a"]],
    ["r" * 257, 1, ["a"]],
    ["r", 1, ["a" * 257]],
    ["r", 1, [""]],
    ["r", 1, [7]],
    ["r", 1, [str(n) for n in range(MOST_SHOWN)]],
    ["r", "1", ["a"]],
    [b"r", 1, ["a"]],
    {"request_id": "r"},
    None,
    b"\xc1",
]


@pytest.mark.parametrize("head", [DEFLATED, PLAIN])
@pytest.mark.parametrize("value", FORGED, ids=lambda value: repr(value)[:20])
def test_a_forged_cursor_of_another_form_is_refused(value: Any, head: bytes) -> None:
    with pytest.raises(InputError, match="holds no page"):
        read_cursor(forged(value, head=head))


def test_a_few_bytes_that_would_become_many_are_refused() -> None:
    with pytest.raises(InputError, match="holds no page"):
        read_cursor(forged(b"\0" * 30_000_000))


@pytest.mark.parametrize("head", [DEFLATED, PLAIN])
def test_a_page_may_be_deflated_or_not(head: bytes) -> None:
    assert read_cursor(forged(["r", 1, ["a"]], head=head)) == Page("r", 1, ["a"])


def test_only_long_pages_are_deflated() -> None:
    short, long = (Page("r", 1, ["a" * 9] * count).cursor() for count in (100, 110))
    assert len(long) < 100 < 1_000 < len(short)


def test_a_cursor_of_another_release_is_refused() -> None:
    with pytest.raises(InputError, match="another release"):
        read_cursor(forged(["r", 1, ["a"]], head=b"\x03"))


def test_the_longest_page_has_a_cursor() -> None:
    shown = [chr(0x80 + n % 97) * 120 + f"{n:016d}" for n in range(MOST_SHOWN - 1)]  # 256 bytes each
    page = Page("r" * 256, 1, shown)
    assert read_cursor(page.cursor()) == page


def test_pages_end_with_the_most_that_may_be_shown() -> None:
    page = Page("r")
    following = page.next([str(n) for n in range(MOST_SHOWN - 1)])
    assert following is not None
    assert (following.number, following.left) == (1, 1)
    assert following.next(["last"]) is None
    assert page.next([str(n) for n in range(MOST_SHOWN)]) is None


@pytest.fixture
def no_engine() -> None:
    """In the place of an engine process."""


@pytest.fixture(params=["in process", "over a socket"])
def client(request: pytest.FixtureRequest, server_settings: Settings) -> Iterator[TestClient]:
    fixture = {"in process": "no_engine", "over a socket": "shared_engine"}[request.param]
    engine = request.getfixturevalue(fixture)
    settings = server_settings.model_copy(update={"engine_socket": engine and engine.socket, "exposure_sync": True})
    with TestClient(create_app(settings)) as client:
        yield client


def through(client: TestClient, body: dict[str, Any]) -> Iterator[RecommendAnswer]:
    """All pages."""
    cursor: dict[str, str] = {}
    while True:
        response = client.post("/v1/recommend", json=body | cursor)
        assert response.status_code == 200, response.text
        answer = RecommendAnswer.model_validate_json(response.content)
        assert (response.headers["x-request-id"] == answer.request_id) == (not cursor)
        yield answer
        if answer.next_cursor is None:
            return
        cursor = {"cursor": answer.next_cursor}


@pytest.mark.parametrize(
    "body",
    [
        {"history": ["item-11", "item-12"], "n": 7},
        {"history": ["item-11"], "n": 43},
        {"history": ["item-11"], "n": 42},
        {"history": ["item-11"], "n": 1},
        {"n": 10, "scene": "home"},
        {"history": ["item-11"], "n": 9, "caps": {"brand": 2}},
        {"history": ["item-11"], "n": 9, "caps": {"category": 2, "category_depth": 2}, "exclude_seen": False},
        {"history": ["item-20"], "n": 6, "diversity": 0.5, "caps": {"brand": 2}},
        {"history": ["item-20"], "n": 5, "filters": {"brands": ["Brand 1"]}},
        {"history": ["item-20"], "n": 5, "filters": {"allow": ["item-31", "item-32", "item-33"]}},
        {"n": 5, "filters": {"allow": []}},
    ],
    ids=lambda body: str({name: value for name, value in body.items() if name != "history"}),
)
def test_all_pages_together_show_every_eligible_item_once(
    client: TestClient, server_settings: Settings, body: dict[str, Any]
) -> None:
    answers = list(through(client, body))
    shown = [item for answer in answers for item in answer.items]
    ids = [item.item_id for item in shown]
    whole = client.post("/v1/recommend", json=body | {"n": 500, "caps": {}}).json()
    assert sorted(ids) == sorted(item["item_id"] for item in whole["items"])
    assert len(set(ids)) == len(ids)
    assert [item.position for item in shown] == list(range(len(ids)))
    assert len({answer.request_id for answer in answers}) == 1
    assert all(answer.items for answer in answers[1:])
    assert all(answer.truncated == (len(answer.items) < body["n"]) for answer in answers)
    brands = [
        Counter(int(item.item_id[-2:]) % 4 for item in answer.items if item.item_id != "item-05") for answer in answers
    ]
    assert max([0, *(count for of in brands for count in of.values())]) <= body.get("caps", {}).get("brand", 500)
    exposures = [each for _, each in read_exposures(server_settings.state / "exposures")][: len(answers)]
    assert [(each.request_id, each.page) for each in exposures] == [
        (answers[0].request_id, number) for number in range(len(answers))
    ]
    assert [position for each in exposures for position in each.positions] == list(range(len(ids)))
    assert [item for each in exposures for item in each.items] == ids
    assert {(each.diversity, tuple(each.caps.items())) for each in exposures} == {
        (body.get("diversity", 0.0), tuple(body.get("caps", {}).items()))
    }


def test_the_last_page_has_what_is_left_of_500(client: TestClient) -> None:
    page = Page("r", 7, [f"nobody-{n}" for n in range(MOST_SHOWN - 2)])
    body = {"history": ["item-11"], "n": 10, "cursor": page.cursor()}
    answer = RecommendAnswer.model_validate(client.post("/v1/recommend", json=body).json())
    assert (answer.request_id, answer.next_cursor, answer.truncated) == ("r", None, True)
    assert [item.position for item in answer.items] == [498, 499]


def test_a_forged_cursor_does_no_harm(client: TestClient) -> None:
    page = Page("any id at all", 500, ["nobody", "item-11", "item-11", "item-30", "\0", "x" * 256])
    body = {"history": ["item-20"], "n": 500, "cursor": page.cursor()}
    answer = RecommendAnswer.model_validate(client.post("/v1/recommend", json=body).json())
    assert {item.item_id for item in answer.items} == ELIGIBLE - {"item-11", "item-20", "item-30"}
    assert "windfire_ineligible_items_total 0.0" in client.get("/metrics").text


@pytest.mark.parametrize("cursor", ["", "x", "?", 7, {}, "A" * (MAX_CURSOR + 1), Page("r", 1, ["a"]).cursor()[:-2]])
def test_a_bad_cursor_is_a_clear_422(client: TestClient, cursor: Any) -> None:
    response = client.post("/v1/recommend", json={"cursor": cursor})
    error = ErrorBody.model_validate_json(response.content)
    assert (response.status_code, error.code, error.field, error.retryable) == (422, "malformed", "body.cursor", False)


def test_no_cursor_is_a_first_page(client: TestClient) -> None:
    assert client.post("/v1/recommend", json={"cursor": None}).json()["items"][0]["position"] == 0
