from __future__ import annotations

import struct
from itertools import pairwise, starmap
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.encoding import HEADER, Codec, UnknownFormatError, order, supersedes
from feature_store.fields import Field, Kind
from feature_store.views import View
from recsys.errors import InputError

FIELDS = (
    Field("number", Kind.INT64),
    Field("real", Kind.FLOAT64, optional=True),
    Field("truth", Kind.BOOL),
    Field("text", Kind.STRING, optional=True),
    Field("numbers", Kind.INT64_LIST, 3),
    Field("texts", Kind.STRING_LIST, 3),
    Field("wide", Kind.FLOAT32_VECTOR, 2),
    Field("half", Kind.FLOAT16_VECTOR, 2),
    Field("byte", Kind.INT8_VECTOR, 2),
)
CODEC = Codec(View("everything", "user", FIELDS, 1, "team"))
INT64 = st.integers(-(2**63), 2**63 - 1)
TIME = st.integers(-(2**62), 2**62 - 1)
VALUES = st.fixed_dictionaries(
    {
        "number": INT64,
        "real": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "truth": st.booleans(),
        "text": st.none() | st.text(max_size=5),
        "numbers": st.lists(INT64, max_size=3),
        "texts": st.lists(st.text(max_size=5), max_size=3),
        "wide": st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2),
        "half": st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), min_size=2, max_size=2),
        "byte": st.lists(st.integers(-128, 127), min_size=2, max_size=2),
    }
)
PLAIN: dict[str, Any] = {
    "number": 1, "truth": True, "numbers": [], "texts": [], "wide": [0, 0], "half": [0, 0], "byte": [0, 0],
}  # fmt: skip


@given(values=VALUES, event_time=TIME, created_at=TIME)
def test_a_value_is_read_as_it_was_written(values: dict[str, Any], event_time: int, created_at: int) -> None:
    stored = CODEC.decode(CODEC.encode(values, event_time, created_at))
    assert stored[:2] == (event_time, created_at)
    named = CODEC.named(stored.packed)
    vectors = {name: named.pop(name) for name in ("wide", "half", "byte")}
    assert named == {name: value for name, value in values.items() if name not in vectors}
    assert [vector.dtype for vector in vectors.values()] == [np.float32, np.float16, np.int8]
    for name, vector in vectors.items():
        np.testing.assert_array_equal(vector, values[name])


@given(event_time=TIME, created_at=TIME)
def test_a_tombstone_has_times_and_no_values(event_time: int, created_at: int) -> None:
    assert CODEC.decode(CODEC.encode(None, event_time, created_at)) == (event_time, created_at, None)


WRITES = st.tuples(st.none() | st.just(PLAIN) | st.just(PLAIN | {"number": 2}), st.integers(-2, 2), st.integers(-2, 2))


@given(writes=st.lists(WRITES, min_size=1, max_size=6), shuffle=st.randoms(use_true_random=False))
def test_the_winner_depends_on_times_and_not_on_the_order_of_arrival(writes: list[Any], shuffle: Any) -> None:
    encoded = list(starmap(CODEC.encode, writes))
    shuffled = shuffle.sample(encoded, len(encoded))
    held: bytes | None = None
    for new in shuffled:
        held = new if supersedes(new, held) else held
    assert held == max(encoded, key=order)
    assert CODEC.decode(held)[:2] == max((event, created) for _, event, created in writes)


@given(times=st.lists(TIME, min_size=2, max_size=8))
def test_bytes_of_times_are_ordered_as_the_times(times: list[int]) -> None:
    raw = [CODEC.encode(None, time, 0)[1 : HEADER.size] for time in sorted(times)]
    assert all(one <= other for one, other in pairwise(raw))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("number", True), ("number", 1.0), ("number", "1"), ("number", 2**63), ("number", None),
        ("real", float("nan")), ("real", float("inf")), ("real", "1"), ("real", False), ("real", 10**400),
        ("truth", 1), ("text", b"x"), ("text", "\ud800"), ("text", "x" * 65_537),
        ("numbers", [1, 2, 3, 4]), ("numbers", [1.5]), ("numbers", 7), ("texts", [None]), ("texts", "abc"),
        ("wide", [1.0]), ("wide", [1.0, float("nan")]), ("wide", [1e39, 0]), ("wide", ["a", "b"]), ("wide", [[1], [2]]),
        ("half", [70_000, 0]), ("byte", [128, 0]), ("byte", [0.5, 0]), ("byte", None),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_named(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"\[{name} = "):
        CODEC.encode(PLAIN | {name: value}, 0, 0)


def test_absent_and_unknown_fields_are_named() -> None:
    with pytest.raises(InputError, match=r"\[truth = None\]"):
        CODEC.encode({"number": 1}, 0, 0)
    with pytest.raises(InputError, match="colour"):
        CODEC.encode(PLAIN | {"colour": "red"}, 0, 0)


@pytest.mark.parametrize("time", [1.5, "now", None, True, 2**62])
def test_a_time_that_is_none_is_named(time: Any) -> None:
    with pytest.raises(InputError, match="event_time"):
        CODEC.encode(PLAIN, time, 0)
    with pytest.raises(InputError, match="created_at"):
        CODEC.encode(PLAIN, 0, time)


def test_numbers_of_numpy_are_numbers() -> None:
    given = PLAIN | {"number": np.int32(5), "real": np.float32(0.5), "truth": np.bool_(True), "numbers": np.arange(2)}
    named = CODEC.named(CODEC.decode(CODEC.encode(given, 0, 0)).packed)
    assert (named["number"], named["real"], named["truth"], named["numbers"]) == (5, 0.5, True, [0, 1])


@pytest.mark.parametrize("raw", [b"", b"\x01short", struct.pack(">BQQ", 9, 0, 0), b"\x00" * 30])
def test_another_format_is_told_from_damage(raw: bytes) -> None:
    with pytest.raises(UnknownFormatError):
        CODEC.decode(raw)
    assert supersedes(CODEC.encode(None, 0, 0), raw)


def test_damage_is_an_error() -> None:
    whole = CODEC.encode(PLAIN, 0, 0)
    with pytest.raises(ValueError, match=r"(?i)input data|expected|truncated"):
        CODEC.decode(whole[:-1])
    other = Codec(View("everything", "user", FIELDS[:2], 1, "team"))
    with pytest.raises(ValueError, match=r"(?i)expected"):
        other.decode(whole)


def test_a_vector_of_another_length_is_damage() -> None:
    two, three = (Codec(View("v", "user", (Field("v", Kind.INT8_VECTOR, n),), 1, "team")) for n in (2, 3))
    with pytest.raises(ValueError, match="2 dimensions"):
        three.named(two_packed(two))


def two_packed(codec: Codec) -> Any:
    return codec.decode(codec.encode({"v": [1, 2]}, 0, 0)).packed
