"""What is sent is what is received, however the stream is cut, and nonsense ends the connection only."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.catalog import CatalogFilter
from recsys.catalog.changes import Delete, Encoded, Upsert
from recsys.errors import (
    ConfigError,
    CorruptionError,
    DataError,
    InputError,
    UnavailableError,
    VersionMismatchError,
    WindfireError,
)
from serving.engine import EngineAnswer, EngineCounts, EngineRequest, EngineVersions, Seek, SlateItem
from serving.item_changes import ItemChange, ItemChanged
from serving.layout import Layout
from serving.remote.wire import (
    MAX_FRAME,
    VERSION,
    Answered,
    Ask,
    BrokenWireError,
    Cancel,
    Change,
    Changed,
    Counted,
    Cutter,
    EngineFaultError,
    Failed,
    Figures,
    Hello,
    Message,
    Speaker,
    Status,
    engine_messages,
    frame,
    front_end_messages,
    greeted,
)
from serving.schemas import ServedBy

text = st.text(max_size=12)
numbers = st.integers(0, 2**63 - 1)
micros = st.none() | st.integers(0, 10**18)
filters = st.builds(
    CatalogFilter,
    st.lists(st.lists(text, max_size=3).map(tuple), max_size=3).map(tuple),
    st.lists(text, max_size=3).map(tuple),
    micros,
    micros,
)
seeks = st.builds(Seek, st.none() | text, st.none() | text, st.none() | st.sampled_from(["text", "given"]))
caps = st.none() | st.integers(1, 500)
requests = st.builds(
    EngineRequest,
    history=st.lists(text, max_size=8),
    n=st.integers(1, 500),
    time=numbers,
    scene=st.none() | text,
    conditions=filters,
    allow=st.none() | st.lists(text, max_size=4),
    deny=st.lists(text, max_size=4),
    exclude_seen=st.booleans(),
    deadline=st.none(),
    seek=st.none() | seeks,
    layout=st.builds(Layout, caps, caps, st.none() | st.integers(1, 16), st.floats(0, 1)),
    shown=st.lists(text, max_size=4),
    request_id=st.none() | text,
    unit=st.none() | text,
)
versions = st.builds(EngineVersions, text, text, text, st.none() | text, st.none() | text)
items = st.builds(SlateItem, text, st.floats(allow_nan=False), text, st.none() | text)
counts = st.builds(EngineCounts, numbers, numbers, numbers, numbers)
answers = st.builds(
    EngineAnswer,
    st.lists(items, max_size=6),
    st.sampled_from(ServedBy),
    st.none() | text,
    text,
    text,
    st.booleans(),
    counts,
    numbers,
    st.none() | st.sampled_from(["unknown_item", "no_index", "no_encoder"]),
    st.booleans(),
    st.dictionaries(text, text, max_size=2),
)
values = st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False) | text
micros_or_none = st.none() | st.integers(0, 10**17)
upserts = st.builds(
    Upsert,
    item_id=text,
    time=numbers,
    title=st.none() | text,
    category_path=st.lists(text, max_size=3).map(tuple),
    price_micros=micros,
    attributes=st.dictionaries(text, text, max_size=3),
    available_until=micros_or_none,
    stock=micros_or_none,
    encoded=st.none() | st.builds(Encoded, tokenizer=text, codes=st.just((1, 2)), text=st.binary(max_size=8)),
)
item_changes = st.builds(
    ItemChange, change=upserts | st.builds(Delete, item_id=text, time=numbers), only_new=st.booleans()
)
items_changed = st.builds(
    ItemChanged, outcome=st.sampled_from(["created", "missing"]), catalog_version=text, reason=text
)
from_engine = (
    st.builds(Answered, numbers, answers)
    | st.builds(Failed, numbers, text, text, text, st.none() | text, values)
    | st.builds(Counted, numbers, st.binary(max_size=50))
    | st.builds(Changed, numbers, items_changed)
    | st.builds(Status, st.none() | versions, st.none() | text, st.booleans())
)
from_front_end = (
    st.builds(Ask.of, numbers, requests, st.just(0.0))
    | st.builds(Cancel, numbers)
    | st.builds(Figures, numbers)
    | st.builds(Change, numbers, item_changes)
)


def body_of(message: Message) -> bytes:
    (body,) = Cutter().cut(bytes(frame(message)))
    return body


@given(message=from_engine)
def test_what_an_engine_says_arrives(message: Answered | Failed | Counted | Changed | Status) -> None:
    assert engine_messages.decode(body_of(message)) == message


@given(message=from_front_end)
def test_what_a_front_end_says_arrives(message: Ask | Cancel | Figures | Change) -> None:
    assert front_end_messages.decode(body_of(message)) == message


@given(number=numbers, request=requests)
def test_a_request_is_the_same_at_the_other_end(number: int, request: EngineRequest) -> None:
    arrived = front_end_messages.decode(body_of(Ask.of(number, request, now=5.0)))
    assert isinstance(arrived, Ask)
    assert (arrived.number, arrived.request(now=5.0)) == (number, request)


def test_a_deadline_travels_as_the_seconds_that_are_left() -> None:
    sent = EngineRequest(history=("a",), n=1, time=0, allow=("b",), deny=("c",), deadline=101.5)
    arrived = front_end_messages.decode(body_of(Ask.of(1, sent, now=100.0)))
    assert isinstance(arrived, Ask)
    request = arrived.request(now=7.0)
    assert request.deadline == 8.5
    assert (request.history, request.allow, request.deny) == (["a"], ["b"], ["c"])


def test_the_time_on_the_way_counts() -> None:
    sent = EngineRequest(history=("a",), n=1, time=7, deadline=101.5)
    arrived = front_end_messages.decode(body_of(Ask.of(1, sent, now=100.0)))
    assert isinstance(arrived, Ask)
    late = arrived.request(now=103.0)
    assert (late.deadline, late.time) == (101.5, 3_000_007)  # an item may have ended meanwhile


@given(messages=st.lists(from_engine, max_size=5), pieces=st.lists(st.integers(0, 60), max_size=40))
def test_a_stream_may_be_split_anywhere(messages: list[Message], pieces: list[int]) -> None:
    stream = b"".join(bytes(frame(message)) for message in messages)
    cutter, bodies, start = Cutter(), [], 0
    for size in [*pieces, len(stream)]:
        bodies += list(cutter.cut(stream[start : start + size]))
        start += size
    assert bodies == [body_of(message) for message in messages]


@pytest.mark.parametrize(
    "kind", [ConfigError, CorruptionError, DataError, InputError, UnavailableError, VersionMismatchError]
)
def test_an_error_keeps_its_class_and_its_words(kind: type[WindfireError]) -> None:
    error = kind("broken", remedy="mend it", field="n", value=3)
    arrived = engine_messages.decode(body_of(Failed.of(4, error)))
    assert isinstance(arrived, Failed)
    again = arrived.error()
    assert type(again) is kind
    assert str(again) == str(error)


@pytest.mark.parametrize("value", [2**70, ["a"], "\ud800", object(), b"\xff"])
def test_an_error_about_any_value_can_travel(value: object) -> None:
    error = InputError("\udfff", field="x", value=value)
    arrived = engine_messages.decode(body_of(Failed.of(4, error)))
    assert isinstance(arrived, Failed)
    assert isinstance(arrived.error(), InputError)
    assert isinstance(arrived.value, str)


@pytest.mark.parametrize("error", [InputError("x" * MAX_FRAME, remedy="y" * MAX_FRAME), ValueError("x" * MAX_FRAME)])
def test_a_failure_always_fits(error: Exception) -> None:
    arrived = engine_messages.decode(body_of(Failed.of(4, error)))
    assert isinstance(arrived, Failed)
    assert max(len(arrived.message), len(arrived.remedy)) == 4_000


@pytest.mark.parametrize("error", [ValueError("thirteen"), WindfireError("thirteen"), KeyError("thirteen")])
def test_another_error_is_a_fault_of_the_engine(error: Exception) -> None:
    again = Failed.of(1, error).error()
    assert type(again) is EngineFaultError
    assert "thirteen" in str(again)


@pytest.mark.parametrize(
    "request_",
    [
        EngineRequest(history=["\ud800"], n=1, time=0),
        EngineRequest(history=[], n=2**70, time=0),
        EngineRequest(history=["x" * MAX_FRAME], n=1, time=0),
    ],
    ids=["surrogate", "number", "size"],
)
def test_a_request_that_cannot_travel_is_named(request_: EngineRequest) -> None:
    with pytest.raises(InputError, match="travel"):
        frame(Ask.of(1, request_, now=0.0))


def test_a_hello_of_any_later_version_can_be_read() -> None:
    greeted(body_of(Hello()))
    later = msgspec.msgpack.encode({"type": "windfire.engine", "version": VERSION + 1, "more": [1]})
    with pytest.raises(BrokenWireError, match=f"speaks version {VERSION + 1}"):
        greeted(later)


class Listener(Speaker):
    """Notes what it hears."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[object]) -> None:
        super().__init__()
        self.decoder = decoder
        self.messages: list[object] = []

    def heard(self, body: bytes) -> None:
        self.messages.append(self.decoder.decode(body))


deep = frame(Hello()) + (200_004).to_bytes(4, "big") + b"\x92\x02\x01\x00" + b"\x91" * 200_000


@pytest.mark.parametrize("decoder", [front_end_messages, engine_messages])
@given(data=st.binary(max_size=80), hello=st.booleans(), framed=st.booleans())
def test_nonsense_is_heard_of_and_nothing_else(
    decoder: msgspec.msgpack.Decoder[object], data: bytes, hello: bool, framed: bool
) -> None:
    listener = Listener(decoder)
    listener.data_received(bytes(frame(Hello())) * hello + len(data).to_bytes(4, "big") * framed + data)
    assert listener.messages == [] or hello


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(frame(Cancel(1))),
        bytes(frame(Hello(VERSION + 1))),
        bytes(frame(Hello())) + (MAX_FRAME + 1).to_bytes(4, "big"),
        bytes(frame(Hello())) + b"\0\0\0\0",
        bytes(frame(Hello())) + bytes(frame(Hello())),
        bytes(frame(Hello())) + b"\0\0\0\3\x92\xa1\xff",
        bytes(deep),
    ],
    ids=["http", "no hello", "version", "size", "empty", "hello twice", "no text", "deep"],
)
@pytest.mark.parametrize("decoder", [front_end_messages, engine_messages])
def test_who_does_not_speak_as_agreed_is_hung_up_on(decoder: msgspec.msgpack.Decoder[object], data: bytes) -> None:
    listener = Listener(decoder)
    listener.data_received(data)
    assert listener.broken
    assert listener.messages == []


def test_scores_keep_every_bit() -> None:
    item = SlateItem("a", math.nextafter(-1.0, 0.0), "nezha", None)
    answer = EngineAnswer([item], ServedBy.NEZHA, None, "v", "v.0", False, EngineCounts(0, 0, 0, 0))
    arrived = engine_messages.decode(body_of(Answered(1, answer)))
    assert isinstance(arrived, Answered)
    assert arrived.answer.items[0].score == item.score
