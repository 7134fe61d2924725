"""vLLM with the plug-in answers what our own engine answers, whatever vLLM does to a prompt on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.vllm_server import POOLING, VllmServer
from recsys.backends.vllm_format import Question, Wanted, pack_shared
from recsys.decoding.decoder import Ranked
from recsys.decoding.eligibility import Eligibility
from recsys.errors import UnavailableError

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
Items = npt.NDArray[np.int32]
LEVELS, ITEMS, HISTORY = 3, 300, 30  # of the exported model
NEAR = 1e-3
NONE = np.empty(0, np.int32)
# Both traps at once: blocks of prompts are cached, and a step takes at most 32 tokens of all requests together.
TRAPS = ("--enable-prefix-caching", "--enable-chunked-prefill", "--max-num-batched-tokens", "32", "--block-size", "32",
         "--max-num-seqs", "16")  # fmt: skip


@pytest.fixture(scope="module")
def server(exported: Any, start_vllm: Callable[..., Any]) -> Iterator[VllmServer]:
    with start_vllm(exported.path, *POOLING, *TRAPS) as server:
        server.wait_until_ready()
        yield server


def histories(count: int, rng: np.random.Generator) -> list[Items]:
    """Of every length from none to more than the model reads."""
    lengths = np.linspace(0, HISTORY + 5, count).astype(int)
    return [rng.integers(ITEMS, size=length, dtype=np.int32) for length in rng.permutation(lengths)]


def post(server: VllmServer, **data: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/pooling", json={"data": data}, timeout=60.0)


def ask(server: VllmServer, history: Items, *, k: int, beam: int, excluded: Items = NONE, shared: Any = None) -> Ranked:
    packed = None if shared is None else pack_shared(shared)
    response = post(server, **Question(None, history, Wanted(k, beam, excluded, packed)).to_json())
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    return Ranked(np.array(data["items"], np.int32), np.array(data["scores"], np.float32))


def assert_same(found: Ranked, expected: Ranked) -> None:
    """Scores within NEAR, and the same items but for swaps among scores that near."""
    assert len(found.items) == len(expected.items)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=NEAR)
    place = {int(item): at for at, item in enumerate(expected.items)}
    cut = expected.scores[-1] if len(expected.scores) else 0.0
    strangers = [score for item, score in zip(found.items, found.scores, strict=True) if int(item) not in place]
    assert all(abs(score - cut) <= NEAR for score in strangers)
    known = [(place[int(item)], score) for item, score in zip(found.items, found.scores, strict=True) if item in place]
    np.testing.assert_allclose([score for _, score in known], [expected.scores[at] for at, _ in known], atol=NEAR)


@pytest.mark.parametrize(("k", "beam"), [(1, 1), (10, 8), (50, 50), (ITEMS, 512)])
def test_answers_equal_our_own_engine(server: VllmServer, exported: Any, k: int, beam: int) -> None:
    decoder = exported.decoder()
    asked = histories(12, np.random.default_rng(1))
    for history, expected in zip(
        asked, decoder.decode(asked, k=k, beam=beam, eligibility=Eligibility()).ranked, strict=True
    ):
        assert_same(ask(server, history, k=k, beam=beam), expected)


def test_the_same_prompt_again_is_not_cut_by_the_prefix_cache(server: VllmServer, exported: Any) -> None:
    history = np.arange(HISTORY, dtype=np.int32)  # 94 tokens: two full blocks of 32, and a hit would leave 30
    longer = [np.append(history[:length], 7).astype(np.int32) for length in (20, 21, 22)]  # blocks end near SP_1..SP_3
    expected = exported.decoder().decode([history, *longer], k=20, beam=50, eligibility=Eligibility()).ranked
    for _ in range(3):
        for asked, answer in zip([history, *longer], expected, strict=True):
            assert_same(ask(server, asked, k=20, beam=50), answer)


def test_prompts_longer_than_a_step_are_put_together_again(server: VllmServer, exported: Any) -> None:
    rng = np.random.default_rng(2)
    asked = [rng.integers(ITEMS, size=length, dtype=np.int32) for length in range(8, HISTORY + 1)]
    lengths = np.array([1 + len(history) * LEVELS + LEVELS for history in asked])
    assert (lengths % 32 < 4).any()  # some are split between the states that the head reads
    expected = exported.decoder().decode(asked, k=20, beam=50, eligibility=Eligibility()).ranked
    for history, answer in zip(asked, expected, strict=True):
        assert_same(ask(server, history, k=20, beam=50), answer)


def test_concurrent_requests_of_different_lengths_get_their_own_answers(server: VllmServer, exported: Any) -> None:
    rng = np.random.default_rng(3)
    asked = histories(40, rng)
    wanted = [(int(k), int(beam)) for k, beam in zip(rng.integers(1, 60, 40), rng.integers(1, 60, 40), strict=True)]
    decoder = exported.decoder()
    expected = [
        decoder.decode([history], k=k, beam=beam, eligibility=Eligibility()).ranked[0]
        for history, (k, beam) in zip(asked, wanted, strict=True)
    ]
    with ThreadPoolExecutor(16) as pool:
        found = list(
            pool.map(lambda one: ask(server, one[0], k=one[1][0], beam=one[1][1]), zip(asked, wanted, strict=True))
        )
    for answer, right in zip(found, expected, strict=True):
        assert_same(answer, right)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_nothing_ineligible_is_returned(server: VllmServer, exported: Any, share: float) -> None:
    rng = np.random.default_rng(4)
    decoder = exported.decoder()
    asked = histories(10, rng)
    shared = rng.random(ITEMS) < share
    excluded = [rng.integers(ITEMS, size=30, dtype=np.int32) for _ in asked]
    expected = decoder.decode(asked, k=25, beam=10, eligibility=Eligibility(shared, excluded)).ranked
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(
                lambda one: ask(server, one[0], k=25, beam=10, excluded=one[1], shared=shared),
                zip(asked, excluded, strict=True),
            )
        )
    for answer, denied, right in zip(found, excluded, expected, strict=True):
        assert not np.isin(answer.items, denied).any()
        assert shared[answer.items].all()
        assert_same(answer, right)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"history": [ITEMS]}, "history"),
        ({"history": [1], "excluded": [-1]}, "excluded"),
        ({"history": [1], "k": 0}, "k"),
        ({"history": [1], "shared": "AA=="}, "shared"),
        ({"history": [1], "export_id": "another"}, "export_id"),
        ({"k": 3}, "history"),
    ],
)
def test_a_bad_request_names_the_field_and_ends_nothing(server: VllmServer, data: dict[str, Any], field: str) -> None:
    response = post(server, **data)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    assert post(server, history=[1, 2]).status_code == 200


def test_other_uses_of_the_endpoint_are_refused_and_end_nothing(server: VllmServer) -> None:
    raw = httpx.post(f"{server.url}/pooling", json={"input": [0, 1, 2], "task": "plugin"}, timeout=60.0)
    assert raw.status_code >= 400
    assert post(server, history=[1, 2]).status_code == 200


def test_a_server_whose_prompts_are_too_short_does_not_start(exported: Any, start_vllm: Callable[..., Any]) -> None:
    with start_vllm(exported.path, *POOLING, "--max-model-len", "64") as server:
        with pytest.raises(UnavailableError, match="vLLM did not start"):
            server.wait_until_ready()
        assert "a history of 30 items and its placeholders are 94 tokens" in server.log.read_text()
