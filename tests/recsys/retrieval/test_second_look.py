"""Short vectors propose, whole ones decide: true scores, whatever happens to the index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys.backends.compressor_onnx import export_compressor
from recsys.errors import ConfigError, CorruptionError, DataError, InputError
from recsys.models.smec import Compressor, CompressorConfig
from recsys.retrieval.building import write_retrieval
from recsys.retrieval.compressing import Shortener, open_compressor
from recsys.retrieval.files import load_index, save_index
from recsys.retrieval.folder import load_retrieval
from recsys.retrieval.query_encoder import EncoderSpec
from recsys.retrieval.settings import IndexSettings
from recsys.retrieval.vector_index import VectorIndex, build_index
from recsys.text.encoder import HASHING, HashingEncoder

KINDS = pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf_pq"])
VECTORS = np.random.default_rng(1).standard_normal((300, 16)).astype(np.float32)
UNIT = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)


def graph(folder: Path, dimension: int) -> Path:
    generator = torch.Generator().manual_seed(2)
    rotation = torch.linalg.qr(torch.randn(dimension, dimension, generator=generator)).Q
    folder.mkdir(exist_ok=True)
    return export_compressor(Compressor(CompressorConfig(dimension, 1), rotation), folder)[0]


@pytest.fixture(scope="module")
def shortener(tmp_path_factory: pytest.TempPathFactory) -> Shortener:
    return open_compressor(graph(tmp_path_factory.mktemp("graph"), 16))


def index_of(kind: Any, shortener: Shortener, **settings: Any) -> VectorIndex:
    chosen = {"exact_rows": 0, "exact_share": 0.0, "ivf_probes": 300, "hnsw_search": 300} | settings
    return build_index(VECTORS, IndexSettings(kind=kind, **chosen), shortener=shortener)


@KINDS
def test_a_second_look_at_all_is_the_exact_answer(kind: str, shortener: Shortener) -> None:
    index = index_of(kind, shortener, rescore=30)
    assert index.dimension == 16
    mask = np.random.default_rng(5).random(300) < 0.5
    for query in UNIT[:20]:
        for allowed in (None, mask):
            scores = np.where(True if allowed is None else allowed, UNIT @ query, -2)
            found = index.search(query, 10, allowed)
            np.testing.assert_allclose(found.scores, np.sort(scores)[::-1][:10], atol=1e-6)
            assert not found.exact


@KINDS
def test_candidates_are_those_of_the_short_vectors(kind: str, shortener: Shortener) -> None:
    index = index_of(kind, shortener, rescore=2)
    short = shortener(VECTORS)
    shares = []
    for query in VECTORS[:20]:
        found = index.search(query, 10)
        near = np.argsort(-(short @ shortener(query[None])[0]))[:20]
        shares.append(np.isin(found.rows, near).mean())
        np.testing.assert_allclose(found.scores, UNIT[found.rows] @ query / np.linalg.norm(query), atol=1e-6)
    assert np.mean(shares) > {"flat": 0.999, "hnsw": 0.98, "ivf_pq": 0.6}[kind]


@KINDS
def test_what_is_put_removed_rebuilt_and_saved_answers_the_same(
    kind: str, shortener: Shortener, tmp_path: Path
) -> None:
    index = index_of(kind, shortener, rescore=40)
    index.put(np.array([400, 3]), 2 * VECTORS[:2])
    index.remove(np.array([5]))
    index.rebuild()
    index.put(np.array([401]), VECTORS[7:8])
    save_index(index, tmp_path / "index")
    held = {path.name for path in (tmp_path / "index").iterdir()}
    assert {"compressor.onnx", "vectors.npy", "index.faiss"} <= held
    again = load_index(tmp_path / "index")
    for query in (*VECTORS[:10], VECTORS[7]):
        one, two = index.search(query, 8), again.search(query, 8)
        assert one.rows.tolist() == two.rows.tolist()
        np.testing.assert_array_equal(one.scores, two.scores)
    assert set(again.search(VECTORS[7], 2).rows.tolist()) == {7, 401}
    assert 5 not in again.search(VECTORS[5], 300).rows
    assert set(again.search(VECTORS[0], 2).rows.tolist()) == {0, 400}
    assert 3 not in again.search(VECTORS[3], 1).rows, "it has another vector now"
    again.rebuild()
    assert len(again) == 301


def test_a_damaged_compressor_is_refused_by_name(shortener: Shortener, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    save_index(index_of("flat", shortener), folder)
    (folder / "compressor.onnx").write_bytes(shortener.graph[:-1] + b"x")
    with pytest.raises(CorruptionError, match=r"compressor\.onnx differs"):
        load_index(folder)


def test_settings_that_do_not_fit_are_refused(shortener: Shortener) -> None:
    with pytest.raises(ConfigError, match="no lengths"):
        build_index(VECTORS, IndexSettings(), cosine=False, shortener=shortener)
    with pytest.raises(InputError, match=r"\(B, 16\)"):
        build_index(VECTORS[:, :8], IndexSettings(), shortener=shortener)


def test_a_searched_text_gets_its_second_look(tmp_path: Path) -> None:
    texts = ["red lacquer", "dry hair", "", "vanilla", "rose", "oil"]
    vectors = HashingEncoder().encode(texts)
    folder, path = tmp_path / "index", graph(tmp_path / "graph", 256)
    ids = [f"item-{n}" for n in range(6)]
    spec = EncoderSpec.of(HASHING, max_tokens=96, bfloat16=False)

    def write(*, second_look: bool) -> list[str]:
        return list(
            write_retrieval(
                folder,
                {"text": vectors},
                IndexSettings(),
                item_ids=ids,
                encoder=spec,
                compressors={"text": path},
                second_look=second_look,
            )
        )

    assert write(second_look=True) == ["text"]
    assert write(second_look=True) == []
    retrieval = load_retrieval(folder)
    assert retrieval.compressors == {}
    assert retrieval.indexes["text"].dimension == 256
    found = retrieval.search("dry hair", 6, None)
    assert found.rows[0] == 1
    assert found.scores[0] == pytest.approx(1, abs=1e-6)
    retrieval.put("text", np.array([6]), vectors[1:2])
    assert retrieval.search("dry hair", 2, None).rows.tolist() == [1, 6]
    assert write(second_look=False) == ["text"]
    assert load_retrieval(folder).indexes["text"].dimension == 128
    with pytest.raises(DataError, match="no compressor of this width"):
        open_compressor(folder / "text" / "compressor.onnx")
