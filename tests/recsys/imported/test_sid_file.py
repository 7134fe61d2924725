from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.example_generator import Example
from recsys.backends.prompted import Vocabulary
from recsys.errors import DataError, InputError
from recsys.imported.sid_file import match_tokens, number_tokens, read_sids

PATTERN = "<s_{letter}_{code}>"
WANTED = {"a": ("<s_a_1>", "<s_b_0>"), "b": ("<s_a_0>", "<s_b_2>")}


def as_json(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def as_gzip(path: Path, value: object) -> Path:
    path.write_bytes(gzip.compress(json.dumps(value).encode()))
    return path


@pytest.mark.parametrize(
    "value",
    [
        {"b": ["<s_a_0>", "<s_b_2>"], "a": ["<s_a_1>", "<s_b_0>"]},
        {"b": [0, 2], "a": [1, 0]},
        {"b": "<|sid_begin|><s_a_0><s_b_2><|sid_end|>", "a": "<s_a_1><s_b_0>"},
    ],
    ids=["tokens", "codes", "text"],
)
def test_every_form_of_a_semantic_id_is_read(value: object, tmp_path: Path) -> None:
    for path in (as_json(tmp_path / "x.index.json", value), as_gzip(tmp_path / "x.json.gz", value)):
        found = read_sids(path, PATTERN)
        assert found == WANTED
        assert list(found) == ["a", "b"]


@pytest.mark.parametrize(
    ("names", "values"),
    [(("pid", "sid"), [[0, 2], [1, 0]]), (("item_id", "codes"), ["<s_a_0><s_b_2>", "<s_a_1><s_b_0>"])],
)
def test_tables_are_read(names: tuple[str, str], values: list[object], tmp_path: Path) -> None:
    pq.write_table(pa.table({names[0]: ["b", "a"], names[1]: values}), tmp_path / "x.parquet")
    assert read_sids(tmp_path / "x.parquet", PATTERN) == WANTED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[1]", "cannot be read"),
        pytest.param('{"a": ' + "[" * 200_000, "cannot be read", id="deep"),
        ("{}", "names no item"),
        ('{"a": [1, 2], "b": [1]}', "'b' has not 2 codes"),
        ('{"a": [1], "a": [2]}', "named twice"),
        ('{"a": [1.5]}', "'a' has no semantic ID"),
        ('{"a": [-1]}', "'a' has no semantic ID"),
        ('{"a": []}', "'a' has no semantic ID"),
        ('{"a": null}', "'a' has no semantic ID"),
    ],
)
def test_bad_files_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_sids(path, PATTERN)


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    path = as_gzip(tmp_path / "x.json.gz", {str(item): [item, 1] for item in range(1_000)})
    whole = path.read_bytes()
    for damaged in (whole[:-20], whole[:200] + b"\xff" * 200 + whole[400:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="cannot be read"):
            read_sids(path, PATTERN)


def test_a_missing_file_and_a_table_without_the_columns(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such SID file"):
        read_sids(tmp_path / "gone.json", PATTERN)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="wanted one of"):
        read_sids(tmp_path / "x.parquet", PATTERN)


def test_codes_are_the_numbers_in_the_tokens(foreign: Example) -> None:
    vocabulary = Vocabulary(foreign.model)
    sids = {"x": ("<a_2>", "<b_0>"), "y": ("<a_0>", "<b_3>")}
    ids, tokens = match_tokens(sids, vocabulary)
    np.testing.assert_array_equal(ids.codes, [[2, 0], [0, 3]])
    assert ids.sizes == (3, 4)
    assert tokens[0] == [vocabulary.token("<a_0>"), -1, vocabulary.token("<a_2>")]
    assert tokens[1] == [vocabulary.token("<b_0>"), -1, -1, vocabulary.token("<b_3>")]
    again, _ = match_tokens(sids | {"y": ("<a_0>", "<b_2>")}, vocabulary)
    assert again.version != ids.version


def test_tokens_without_numbers_are_numbered_by_id(foreign: Example) -> None:
    vocabulary = Vocabulary(foreign.model)
    ids, tokens = match_tokens({"x": ("<|im_end|>",), "y": ("<|im_start|>",), "z": ("<a_1>",)}, vocabulary)
    np.testing.assert_array_equal(ids.codes[:, 0], [1, 0, 2])
    assert tokens[0] == sorted(tokens[0])


def test_tokens_that_the_vocabulary_lacks_are_counted(foreign: Example) -> None:
    with pytest.raises(DataError, match="1 of 2 tokens of level 2"):
        match_tokens({"x": ("<a_1>", "<b_1>"), "y": ("<a_1>", "<b_77>")}, Vocabulary(foreign.model))


def test_published_files_are_read(real_data: Path) -> None:
    beauty = read_sids(real_data / "amazon2014_beauty" / "sids" / "letter_paper.index.json", "")
    assert len(beauty) == 12_101
    assert beauty["0"] == ("<a_183>", "<b_70>", "<c_232>", "<d_6>")
    scientific = read_sids(real_data / "amazon2018_scientific" / "sids" / "rkmeans_zcr.index.json.gz", "")
    assert len(scientific) == 4_344


def test_tokens_are_numbered_without_a_vocabulary() -> None:
    ids = number_tokens({"x": ("<a_3>", "red"), "y": ("<a_0>", "blue"), "z": ("<a_3>", "blue")})
    assert ids.codes.tolist() == [[3, 1], [0, 0], [3, 0]]
    assert ids.sizes == (4, 2)
