from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.errors import ConfigError, CorruptionError, DataError
from recsys.retrieval.files import INDEX, load_index, read_origin, save_index
from recsys.retrieval.settings import IndexSettings
from recsys.retrieval.vector_index import VectorIndex, build_index
from recsys.storage import read_json, sha256_file, write_json_atomically

KINDS = ("flat", "hnsw", "ivf_pq")


def changed_index(kind: Any) -> VectorIndex:
    """With tombstones and fresh vectors."""
    vectors = np.random.default_rng(1).standard_normal((300, 8))
    vectors[17] = 0
    index = build_index(vectors, IndexSettings(kind=kind, exact_rows=0))
    index.put(np.array([400, 3]), vectors[:2])
    index.remove(np.array([5, 6]))
    return index


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verify", [True, False])
def test_what_is_saved_answers_the_same(kind: str, verify: bool, tmp_path: Path) -> None:
    index = changed_index(kind)
    save_index(index, tmp_path / "index", origin={"vectors": "own"})
    again = load_index(tmp_path / "index", verify=verify)
    assert read_origin(tmp_path / "index") == {"vectors": "own"}
    assert (len(again), again.dimension, again.settings) == (len(index), 8, index.settings)
    mask = np.random.default_rng(2).random(500) < 0.5
    for query in np.random.default_rng(3).standard_normal((20, 8)):
        for allowed in (None, mask):
            one, two = index.search(query, 10, allowed), again.search(query, 10, allowed)
            assert one.rows.tolist() == two.rows.tolist()
            assert one.scores.tolist() == two.scores.tolist()
    again.put(np.array([401]), np.ones((1, 8)))
    again.rebuild()
    assert len(again) == len(index) + 1
    assert again.state.dead is None


def test_an_index_without_vectors_can_be_saved(tmp_path: Path) -> None:
    save_index(build_index(np.zeros((4, 3)), IndexSettings()), tmp_path / "index")
    again = load_index(tmp_path / "index")
    assert (len(again), again.dimension) == (0, 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [0, 70, -1])
def test_one_flipped_byte_in_any_file_is_refused_by_name(kind: str, place: int, tmp_path: Path) -> None:
    save_index(changed_index(kind), tmp_path / "index")
    files = sorted((tmp_path / "index").iterdir())
    assert len(files) == {"flat": 6, "hnsw": 6, "ivf_pq": 7}[kind]
    for path in files:
        whole = path.read_bytes()
        spoiled = bytearray(whole)
        spoiled[place % len(whole)] ^= 1
        path.write_bytes(spoiled)
        with pytest.raises(CorruptionError, match=path.name) as raised:
            load_index(tmp_path / "index")
        assert raised.value.value == str(path)
        path.write_bytes(whole)
    assert len(load_index(tmp_path / "index")) == 298


@pytest.mark.parametrize("verify", [True, False])
def test_a_cut_or_missing_file_is_refused_by_name(verify: bool, tmp_path: Path) -> None:
    save_index(changed_index("hnsw"), tmp_path / "index")
    for path in sorted((tmp_path / "index").glob("*.[nf]*")):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(CorruptionError, match=path.name):
            load_index(tmp_path / "index", verify=verify)
        path.unlink()
        with pytest.raises(CorruptionError, match=f"{path.name} is missing"):
            load_index(tmp_path / "index", verify=verify)
        path.write_bytes(whole)


def replace_file(directory: Path, name: str, source: Path) -> None:
    """Put another file in and sign for it, as somebody who mixes two indexes up does."""
    from recsys.retrieval.files import _seal

    shutil.copyfile(source, directory / name)
    value = read_json(directory / INDEX)
    value["files"][name] = {"sha256": sha256_file(source), "bytes": source.stat().st_size}
    del value["seal"]
    write_json_atomically(directory / INDEX, {**value, "seal": _seal(value)})


@pytest.mark.parametrize(
    ("kind", "shape"), [("flat", (300, 8)), ("ivf_pq", (300, 8)), ("hnsw", (300, 4)), ("hnsw", (200, 8))]
)
def test_the_file_of_another_index_is_refused_by_name(kind: Any, shape: tuple[int, int], tmp_path: Path) -> None:
    save_index(changed_index("hnsw"), tmp_path / "index")
    other = build_index(np.random.default_rng(4).standard_normal(shape), IndexSettings(kind=kind))
    save_index(other, tmp_path / "other")
    replace_file(tmp_path / "index", "index.faiss", tmp_path / "other" / "index.faiss")
    with pytest.raises(DataError, match=r"index\.faiss belongs to another index"):
        load_index(tmp_path / "index")


def test_a_file_that_is_no_index_is_refused_by_name(tmp_path: Path) -> None:
    save_index(changed_index("hnsw"), tmp_path / "index")
    (tmp_path / "nonsense").write_bytes(b"IxFInonsense")
    replace_file(tmp_path / "index", "index.faiss", tmp_path / "nonsense")
    with pytest.raises(CorruptionError, match=r"index\.faiss cannot be read by faiss"):
        load_index(tmp_path / "index")


def test_arrays_of_another_length_are_refused_by_name(tmp_path: Path) -> None:
    save_index(changed_index("hnsw"), tmp_path / "index")
    np.save(tmp_path / "other.npy", np.zeros(7, dtype=bool))
    replace_file(tmp_path / "index", "dead.npy", tmp_path / "other.npy")
    with pytest.raises(DataError, match=r"dead\.npy belongs to another"):
        load_index(tmp_path / "index")


def test_no_index_and_another_format(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no index here"):
        load_index(tmp_path)
    write_json_atomically(tmp_path / INDEX, {"format": "windfire.index/0"})
    with pytest.raises(DataError, match="another format"):
        load_index(tmp_path)


def test_a_save_that_dies_leaves_the_index_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_index(changed_index("flat"), tmp_path / "index")
    before = {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir()}

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("recsys.retrieval.files.save_array", fail)
        with pytest.raises(OSError, match="No space"):
            save_index(changed_index("hnsw"), tmp_path / "index")
    assert {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


@pytest.mark.parametrize(
    ("field", "value"), [("kind", "annoy"), ("exact_share", 1.5), ("hnsw_links", 1), ("colour", 1)]
)
def test_bad_settings_are_named(field: str, value: Any, tmp_path: Path) -> None:
    (tmp_path / "index.yaml").write_text(f"{field}: {value}\n")
    with pytest.raises(ConfigError) as raised:
        IndexSettings.load(tmp_path / "index.yaml")
    assert raised.value.field == f"index.{field}"
