"""Both sides of the interface to vLLM read what the other wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.backends.vllm_format import (
    FORMAT,
    Answer,
    ExportManifest,
    Question,
    Status,
    Vocabulary,
    Wanted,
    pack_shared,
    unpack_shared,
)
from recsys.errors import DataError, InputError

ITEMS = 20
indices = st.lists(st.integers(0, ITEMS - 1), max_size=6)


@given(
    items=st.lists(st.integers(0, 2**31 - 1), max_size=9),
    score=st.floats(-1000, 1000, width=32),
    widened=st.integers(0, 40),
)
def test_an_answer_survives_as_floats_bit_for_bit(items: list[int], score: float, widened: int) -> None:
    scores = np.full(len(items), score, dtype=np.float32)
    found = Answer.decode(Answer(np.array(items, dtype=np.int32), scores, widened).encode())
    np.testing.assert_array_equal(found.items, items)
    np.testing.assert_array_equal(found.scores, scores)
    assert (found.widened, found.status) == (widened, Status.DONE)


@pytest.mark.parametrize("status", [Status.TOO_FEW_ROWS, Status.NOT_FINITE, Status.BAD_REQUEST])
def test_a_failure_survives(status: int) -> None:
    found = Answer.decode(Answer.failed(status).encode())
    assert (found.status, len(found.items)) == (status, 0)


@given(
    history=indices,
    excluded=indices,
    k=st.integers(1, 500),
    beam=st.integers(1, 4096),
    shared=st.none() | st.lists(st.booleans(), min_size=ITEMS, max_size=ITEMS),
)
def test_a_question_survives_json_and_the_way_to_the_pooler(
    history: list[int], excluded: list[int], k: int, beam: int, shared: list[bool] | None
) -> None:
    packed = None if shared is None else pack_shared(np.array(shared))
    asked = Question("id", np.array(history, np.int32), Wanted(k, beam, np.array(excluded, dtype=np.int32), packed))
    found = Question.parse(json.loads(json.dumps(asked.to_json())), items=ITEMS)
    assert found.export_id == "id"
    np.testing.assert_array_equal(found.history, history)
    inside = Wanted.from_kwargs(found.wanted.to_kwargs(), items=ITEMS)
    assert (inside.k, inside.beam, inside.shared) == (k, beam, packed)
    np.testing.assert_array_equal(inside.excluded, excluded)


@given(st.lists(st.booleans(), max_size=40))
def test_a_bitset_survives(bits: list[bool]) -> None:
    shared = np.array(bits, dtype=np.bool_)
    np.testing.assert_array_equal(unpack_shared(pack_shared(shared), len(bits)), shared)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ([], "data"),
        ({"history": [1], "length": 3}, "data"),
        ({}, "history"),
        ({"history": "1"}, "history"),
        ({"history": [1.0]}, "history"),
        ({"history": [True]}, "history"),
        ({"history": [ITEMS]}, "history"),
        ({"history": [-1]}, "history"),
        ({"history": [2**80]}, "history"),
        ({"history": [1], "excluded": [ITEMS]}, "excluded"),
        ({"history": [1], "k": 0}, "k"),
        ({"history": [1], "k": "5"}, "k"),
        ({"history": [1], "k": 2**31}, "k"),
        ({"history": [1], "k": True}, "k"),
        ({"history": [1], "beam": 2**31}, "beam"),
        ({"history": [1], "beam": 2.5}, "beam"),
        ({"history": [1], "shared": "AA=="}, "shared"),
        ({"history": [1], "shared": "not base64"}, "shared"),
        ({"history": [1], "shared": 3}, "shared"),
        ({"history": [1], "export_id": 3}, "export_id"),
    ],
)
def test_a_bad_question_names_the_field(data: Any, field: str) -> None:
    with pytest.raises(InputError) as raised:
        Question.parse(data, items=ITEMS)
    assert raised.value.field == field


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"k": 1, "beam": 1, "excluded": b"\0", "shared": None},
        {"k": 0, "beam": 1, "excluded": b"", "shared": None},
        {"k": 2**31, "beam": 1, "excluded": b"", "shared": None},
        {"k": 1, "beam": 2**31, "excluded": b"", "shared": None},
        {"k": 1, "beam": 1, "excluded": np.array([ITEMS], np.int32).tobytes(), "shared": None},
        {"k": 1, "beam": 1, "excluded": b"", "shared": b"\0"},
    ],
)
def test_the_pooler_refuses_what_no_processor_passes(given: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Wanted.from_kwargs(given, items=ITEMS)


def test_a_prompt_is_start_items_placeholders() -> None:
    vocabulary = Vocabulary((3, 4, 5), last_rows=7, placeholders=True)
    codes, last = np.array([[2, 3, 4], [0, 1, 0]]), np.array([6, 0])
    # start 0, level one 1..3, level two 4..7, last tokens 8..14, placeholders 15..17
    assert vocabulary.prompt(codes, last) == [0, 3, 7, 14, 1, 5, 8, 15, 16, 17]
    assert vocabulary.prompt(codes[:0], last[:0]) == [0, 15, 16, 17]
    assert (vocabulary.size, vocabulary.rows, vocabulary.longest(2)) == (18, 4, 10)


def test_without_placeholders_the_last_item_ends_the_prompt() -> None:
    vocabulary = Vocabulary((3, 4, 5), last_rows=7, placeholders=False)
    assert vocabulary.prompt(np.array([[2, 3, 4]]), np.array([6])) == [0, 3, 7, 14]
    assert (vocabulary.size, vocabulary.rows, vocabulary.longest(2)) == (15, 1, 7)


@pytest.mark.parametrize("text", ["", "[]", '{"format": "other/1"}', f'{{"format": "{FORMAT}"}}'])
def test_what_is_no_export_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "windfire.json").write_text(text)
    with pytest.raises(DataError) as raised:
        ExportManifest.load(tmp_path)
    assert raised.value.field == "path"


def test_a_missing_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no exported model"):
        ExportManifest.load(tmp_path)
