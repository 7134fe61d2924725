"""A bundle that can encode new items: hashed texts, a real tokenizer with all it has given, an index over the texts."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from recsys.bundle import Bundle, Registry, load_decoder, load_indexes, publish_run
from recsys.catalog.log import CatalogLog
from recsys.models import ItemFeatures, RecommenderConfig, build_model
from recsys.retrieval.building import write_retrieval
from recsys.retrieval.query_encoder import EncoderSpec
from recsys.retrieval.settings import IndexSettings, VectorsName
from recsys.semantic_ids.artefact import Artefact, version_of
from recsys.semantic_ids.collisions import settle
from recsys.semantic_ids.settings import SemanticIdSettings
from recsys.semantic_ids.sources import fit_source
from recsys.semantic_ids.tokenizer import fit_tokenizer
from recsys.storage import read_json, write_json_atomically
from recsys.text.encoder import HashingEncoder
from recsys.text.item_text import item_text
from serving.stages import BundleRecommender

SIZES = (4, 4, 24)
ENCODER = {"hashing": True, "max_tokens": 64, "bfloat16": False}


def _replace(work: Path, job: str, table: pa.Table) -> None:
    pq.write_table(table, work / job / "data" / "part-0.parquet")


@pytest.fixture(scope="session")
def encodable_work(tiny_work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_work` with text vectors by hashing, semantic IDs of a fitted tokenizer, and indexes. Read only."""
    return _make_work(tiny_work, tmp_path_factory.mktemp("encodable") / "work", SemanticIdSettings())


def _make_work(tiny_work: Path, work: Path, settings: SemanticIdSettings) -> Path:
    shutil.copytree(tiny_work, work)
    items = pq.read_table(work / "items" / "data" / "part-0.parquet").to_pylist()
    words = [item_text(row["title"], row["category_path"], row["brand"], row["text"]) for row in items]
    text = HashingEncoder().encode(words)
    indices = pa.array(range(len(items)), pa.int32())
    _replace(work, "text_embeddings", pa.table({"item_index": indices, "vector": list(text)}))
    other = np.stack(pq.read_table(work / "collaborative" / "data" / "part-0.parquet")["vector"].to_pylist())
    other = other.astype(np.float32)
    source, _ = fit_source(settings, text, other)
    vectors = source.embed(text, other)
    tokenizer = fit_tokenizer(vectors, settings.fitting(SIZES), seed=settings.seed)
    codes, sizes = settle(settings.collisions, *tokenizer.encode(vectors), tokenizer)
    ids = np.array([row["item_id"] for row in items], dtype=object)
    shutil.rmtree(work / "semantic_ids")
    (work / "semantic_ids" / "data").mkdir(parents=True)
    description = {
        "tokenizer_version": version_of(tokenizer, source, ids, codes),
        "codebook_sizes": list(sizes),
        "settings": settings.described(),
        "text": ENCODER,
    }
    Artefact(description, settings, tokenizer, source, ids, codes).save(work / "semantic_ids")
    _replace(work, "semantic_ids", pa.table({"item_index": indices, "codes": codes.tolist()}))
    spec = EncoderSpec.of("hashing", max_tokens=64, bfloat16=False)
    named: dict[VectorsName, np.ndarray[Any, Any]] = {"text": text, "collaborative": other}
    (work / "retrieval").mkdir()
    write_retrieval(work / "retrieval", named, IndexSettings(), item_ids=ids.tolist(), encoder=spec)
    return work


@pytest.fixture(scope="session")
def encodable_run(encodable_work: Path, tiny_run: Path) -> Path:
    """A compact model over `encodable_work`, with random weights. Read only."""
    return _make_run(encodable_work, tiny_run, encodable_work.parent / "run", seed=11)


@pytest.fixture(scope="session")
def encodable_rerun(encodable_work: Path, tiny_run: Path) -> Path:
    """The same with other weights. Read only."""
    return _make_run(encodable_work, tiny_run, encodable_work.parent / "rerun", seed=12)


def _make_run(encodable_work: Path, tiny_run: Path, run: Path, *, seed: int) -> Path:
    count = pq.read_table(encodable_work / "items" / "data" / "part-0.parquet").num_rows
    config = RecommenderConfig(SIZES, count, 256, 4, d_model=16, layers=1, heads=2, max_history=10, item_rows=True)
    features = ItemFeatures(
        np.zeros((count, 3), np.int32),
        np.zeros((count, 256), np.float32),
        np.zeros((count, 4), np.float32),
        np.ones(count, np.int64),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = build_model(config, features).state_dict()
        weights["head.item_output.weight"].normal_(std=0.02)
        weights["trunk.input.unknown"].normal_(std=0.02)
    (run / "model").mkdir(parents=True)
    save_file(weights, run / "model" / "weights.safetensors")
    write_json_atomically(run / "model" / "config.json", config.to_dict())
    version = read_json(encodable_work / "semantic_ids" / "tokenizer.json")["tokenizer_version"]
    manifest = read_json(tiny_run / "manifest.json") | {"tokenizer_version": version}
    write_json_atomically(run / "manifest.json", manifest)
    return run


@pytest.fixture(scope="session")
def encodable_registry(encodable_work: Path, encodable_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """`encodable_run`, published and current. Read only, and no log of changes in it."""
    registry = Registry(tmp_path_factory.mktemp("encodable_registry") / "registry")
    publish_run(registry, run=encodable_run, work=encodable_work, created=datetime(2026, 1, 1, tzinfo=UTC))
    return registry


@pytest.fixture(scope="session")
def encodable_bundle(encodable_registry: Registry) -> Bundle:
    return encodable_registry.open_current()


@pytest.fixture(scope="session")
def second_bundle(tiny_work: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Of the same snapshot, by another tokenizer and other weights. Read only."""
    folder = tmp_path_factory.mktemp("second")
    work = _make_work(tiny_work, folder / "work", SemanticIdSettings(seed=5, source="text"))
    registry = Registry(folder / "registry")
    publish_run(
        registry,
        run=_make_run(work, tiny_run, folder / "run", seed=13),
        work=work,
        created=datetime(2026, 2, 1, tzinfo=UTC),
    )
    return registry.open_current()


@pytest.fixture
def catalog_log(tmp_path: Path) -> CatalogLog:
    return CatalogLog(tmp_path / "catalog_log")


@pytest.fixture
def live(encodable_bundle: Bundle, catalog_log: CatalogLog) -> BundleRecommender:
    """A recommender of its own that follows `catalog_log`."""
    decoder, indexes = load_decoder(encodable_bundle), load_indexes(encodable_bundle)
    return BundleRecommender(encodable_bundle, decoder, beam=20, retrieval=indexes, log=catalog_log)


@pytest.fixture
def other(encodable_bundle: Bundle, catalog_log: CatalogLog) -> BundleRecommender:
    """A second worker on the same log."""
    decoder, indexes = load_decoder(encodable_bundle), load_indexes(encodable_bundle)
    return BundleRecommender(encodable_bundle, decoder, beam=20, retrieval=indexes, log=catalog_log)
