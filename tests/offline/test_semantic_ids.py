"""The job semantic_ids on vectors made by hand: no Spark."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from offline.job import JobContext, JobManifest, Outcome
from offline.jobs.semantic_ids import build_semantic_ids, compressor_files, extend_semantic_ids, warm_start_files
from offline.pipeline import plan
from offline.session import LazySession
from offline.settings import OfflineSettings
from offline.tables import Tables
from recsys.bundle.compressor import save_compressor
from recsys.datasets.prepared import read_job
from recsys.errors import ConfigError, DataError, VersionMismatchError
from recsys.models.smec import Compressor, CompressorConfig
from recsys.semantic_ids.artefact import Artefact
from recsys.semantic_ids.retraining import changed_prefixes
from recsys.semantic_ids.settings import SemanticIdSettings
from recsys.storage import read_json, write_json_atomically

if TYPE_CHECKING:
    from pathlib import Path

QUICK: dict[str, Any] = {
    "codebook_sizes": [6, 6, 32],
    "iterations": 5,
    "rq_vae": {"hidden": 16, "latent": 4, "steps": 40, "batch": 64},
}


def settings(**changes: Any) -> SemanticIdSettings:
    return SemanticIdSettings.model_validate(QUICK | changes)


def write_inputs(work: Path, *, items: int = 80, seed: int = 0, encoder: str = "e1") -> Path:
    """What the job reads; every fifth item has no interactions, and the first items are the same for one seed."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((9, 10))
    vectors = (centres[rng.integers(9, size=200)] + 0.3 * rng.standard_normal((200, 10))).astype("f4")[:items]
    other = vectors[:, 6:].copy()
    other[::5] = 0
    index = np.arange(items, dtype=np.int32)
    tables = {
        "catalog": pa.table({"item_index": index, "item_id": [f"i{n:03d}" for n in index]}),
        "text_embeddings": pa.table({"item_index": index, "vector": list(vectors[:, :6])}),
        "collaborative": pa.table({"item_index": index, "vector": list(other)}),
    }
    for job, table in tables.items():
        (work / job / "data").mkdir(parents=True)
        pq.write_table(table, work / job / "data" / "part-0.parquet")
    JobManifest("text_embeddings", 1, {}, {"encoder": encoder}, {}, 0, 0, "", "").save(work / "text_embeddings")
    return work


def context(work: Path, output: Path) -> JobContext:
    output.mkdir(parents=True)
    return JobContext(work, output, {}, None, LazySession(""), "semantic_ids")


def build(work: Path, chosen: SemanticIdSettings) -> Outcome:
    return build_semantic_ids(context(work, work / "semantic_ids"), chosen)


def codes_of(folder: Path) -> np.ndarray:
    return np.array(read_job(folder.parent, folder.name).sort_by("item_index")["codes"].to_pylist())


def test_without_a_guess_the_defaults_leave_the_files_they_always_left(tmp_path: Path) -> None:
    work = write_inputs(tmp_path / "work")
    outcome = build(work, SemanticIdSettings(fill="zero"))
    folder = work / "semantic_ids"
    description = read_json(folder / "tokenizer.json")
    assert sorted(path.name for path in folder.iterdir()) == [
        "assigned", "codebook_0.npy", "codebook_1.npy", "codebook_2.npy", "data", "tokenizer.json",
    ]  # fmt: skip
    assert set(description) == {"tokenizer_version", "codebook_sizes", "settings", "text"}
    assert description["settings"] == {
        "collaborative_weight": 0.5,
        "codebook_sizes": None,
        "seed": 0,
        "iterations": 25,
        "threads": 1,
    }
    assert set(outcome.counts) == {"written", "colliding_before", "colliding", "new"}
    assert outcome.measures == {}


@pytest.mark.parametrize("tokenizer", ["residual_kmeans", "rq_vae", "product"])
@pytest.mark.parametrize("collisions", ["reassign", "extra_digit", "buckets"])
def test_every_choice_is_built_stored_and_extended(tokenizer: str, collisions: str, tmp_path: Path) -> None:
    work = write_inputs(tmp_path / "work")
    outcome = build(work, settings(tokenizer=tokenizer, collisions=collisions, fill="predicted"))
    first = codes_of(work / "semantic_ids")
    artefact = Artefact.load(work / "semantic_ids")
    later = write_inputs(tmp_path / "later", items=100)
    (work / "semantic_ids").rename(later / "semantic_ids")
    extended = extend_semantic_ids(context(later, tmp_path / "new" / "semantic_ids"))
    second = codes_of(tmp_path / "new" / "semantic_ids")
    grown = Artefact.load(tmp_path / "new" / "semantic_ids")
    assert (extended.counts["new"], outcome.counts["predicted"]) == (20, 16)
    assert (outcome.counts["colliding"] == 0) == (collisions != "buckets")
    assert first.shape[1] == len(artefact.sizes) == 3 + (collisions == "extra_digit")
    assert ((second >= 0) & (second < artefact.sizes)).all()
    np.testing.assert_array_equal(second[:80], first)
    np.testing.assert_array_equal(grown.codes, second)
    assert (grown.version, grown.sizes, grown.settings) == (artefact.version, artefact.sizes, artefact.settings)
    for name, values in (artefact.tokenizer.state() | artefact.source.state()).items():
        np.testing.assert_array_equal((grown.tokenizer.state() | grown.source.state())[name], values)


@pytest.mark.parametrize("source", ["text", "collaborative", "fused"])
def test_the_source_decides_which_vectors_matter(source: str, tmp_path: Path) -> None:
    work = write_inputs(tmp_path / "work")
    build(work, settings(source=source))
    artefact = Artefact.load(work / "semantic_ids")
    assert artefact.tokenizer.dimension == {"text": 6, "collaborative": 4, "fused": 10}[source]


def test_the_version_names_the_prediction_too(tmp_path: Path) -> None:
    versions = []
    for name, ridge in (("one", 1.0), ("again", 1.0), ("two", 2.0)):
        work = write_inputs(tmp_path / name)
        build(work, settings(fill="predicted", ridge=ridge))
        versions.append(Artefact.load(work / "semantic_ids").version)
    assert versions[0] == versions[1] != versions[2]


@pytest.mark.parametrize("tokenizer", ["residual_kmeans", "rq_vae", "product"])
def test_a_warm_start_keeps_prefixes_that_a_cold_start_loses(tokenizer: str, tmp_path: Path) -> None:
    first = write_inputs(tmp_path / "first")
    build(first, settings(tokenizer=tokenizer))
    second, cold = (write_inputs(tmp_path / name, items=90) for name in ("second", "cold"))
    outcome = build(second, settings(tokenizer=tokenizer, seed=1, warm_start=first, codebook_sizes=None))
    build(cold, settings(tokenizer=tokenizer, seed=1))
    before, after, anew = (codes_of(work / "semantic_ids") for work in (first, second, cold))
    changed = changed_prefixes(before.astype(np.int32), after[:80].astype(np.int32))
    shares = [outcome.measures[f"changed_prefix_{level}"] for level in (1, 2, 3)]
    assert outcome.counts["kept"] == 80
    assert shares == pytest.approx(changed.tolist())
    assert shares[0] < 0.35 < (before[:, 0] != anew[:80, 0]).mean()
    earlier = Artefact.load(first / "semantic_ids").version
    assert read_json(second / "semantic_ids" / "tokenizer.json")["warm_start"] == earlier
    assert "warm_start" not in read_json(second / "semantic_ids" / "tokenizer.json")["settings"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"tokenizer": "product"}, "tokenizer"),
        ({"codebook_sizes": [6, 6, 16]}, "codebook_sizes"),
        ({"source": "text"}, "source"),
        ({"collaborative_weight": 0.2}, "collaborative_weight"),
    ],
)
def test_a_warm_start_from_something_else_is_refused(changes: dict[str, Any], field: str, tmp_path: Path) -> None:
    first, second = (write_inputs(tmp_path / name) for name in ("first", "second"))
    build(first, settings())
    with pytest.raises(VersionMismatchError) as caught:
        build(second, settings(warm_start=first, **changes))
    assert caught.value.field == field


def test_a_warm_start_under_another_text_encoder_is_refused(tmp_path: Path) -> None:
    first, second = (write_inputs(tmp_path / name, encoder=name) for name in ("first", "second"))
    build(first, settings())
    with pytest.raises(VersionMismatchError, match="text encoder"):
        build(second, settings(warm_start=first))


def test_the_plan_notices_another_tokenizer_to_begin_with(tmp_path: Path) -> None:
    first = write_inputs(tmp_path / "first")
    build(first, settings())
    chosen = OfflineSettings.parse({"semantic_ids": {"warm_start": str(first)}})
    files = []
    for _ in range(2):
        jobs = plan(Tables((), time_is_order=False), tmp_path / "work", chosen, "build")
        files.append(next(dict(job.files) for job in jobs if job.name == "semantic_ids"))
        path = first / "semantic_ids" / "tokenizer.json"
        write_json_atomically(path, read_json(path) | {"tokenizer_version": "another"})
    assert files[0].keys() == {"warm_start"}
    assert files[0] != files[1]


def test_impossible_warm_starts_are_named(tmp_path: Path) -> None:
    work = write_inputs(tmp_path / "work")
    build(work, settings())
    with pytest.raises(ConfigError, match="replaces"):
        warm_start_files(work, settings(warm_start=work))
    with pytest.raises(DataError, match="no tokenizer"):
        warm_start_files(work, settings(warm_start=tmp_path / "nowhere"))
    chosen = OfflineSettings.parse({"semantic_ids": {"warm_start": str(work)}})
    with pytest.raises(ConfigError, match="extended"):
        plan(Tables((), time_is_order=False), work, chosen, "extend")


def test_a_source_without_collaboration_has_nothing_to_fill() -> None:
    with pytest.raises(ConfigError) as caught:
        OfflineSettings.parse({"semantic_ids": {"source": "text", "fill": "predicted"}})
    assert caught.value.field == "semantic_ids"


def compressor_run(folder: Path, *, dimension: int = 6, seed: int = 1) -> Path:
    """As `windfire train smec` leaves one, as far as the job reads it."""
    model = Compressor(CompressorConfig(dimension, 1))
    with torch.no_grad():
        model.stage(0).delta.copy_(torch.randn(dimension, dimension, generator=torch.Generator().manual_seed(seed)))
    (folder / "model").mkdir(parents=True)
    save_compressor(folder / "model", model)
    return folder


def test_semantic_ids_of_shorter_text(tmp_path: Path) -> None:
    """Built, stored and extended without the run; another compressor is another version, and no warm start."""
    run = compressor_run(tmp_path / "run")
    work = write_inputs(tmp_path / "work")
    build(work, settings(compressor=run, compressor_width=3))
    artefact = Artefact.load(work / "semantic_ids")
    assert artefact.tokenizer.dimension == 3 + 4
    assert "compressor" not in artefact.description["settings"]
    shutil.rmtree(run)
    later = write_inputs(tmp_path / "later", items=100)
    (work / "semantic_ids").rename(later / "semantic_ids")
    extend_semantic_ids(context(later, tmp_path / "new" / "semantic_ids"))
    np.testing.assert_array_equal(codes_of(tmp_path / "new" / "semantic_ids")[:80], artefact.codes)
    other = compressor_run(tmp_path / "other", seed=2)
    again = write_inputs(tmp_path / "again")
    build(again, settings(compressor=other, compressor_width=3))
    assert Artefact.load(again / "semantic_ids").version != artefact.version
    for changes in ({}, {"compressor": other, "compressor_width": 3}):
        target = write_inputs(tmp_path / f"warm{len(changes)}")
        with pytest.raises(VersionMismatchError, match="another compressor"):
            build(target, settings(warm_start=later, **changes))


def test_compressors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    work = write_inputs(tmp_path / "work")
    wide = compressor_run(tmp_path / "wide", dimension=8)
    with pytest.raises(VersionMismatchError, match="8 dimensions"):
        build(work, settings(compressor=wide, compressor_width=4))
    shutil.rmtree(work / "semantic_ids")
    with pytest.raises(ConfigError, match="no such width"):
        build(work, settings(compressor=compressor_run(tmp_path / "run"), compressor_width=5))
    with pytest.raises(DataError, match="no compressor is here"):
        compressor_files(settings(compressor=tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="reads no text"):
        settings(compressor=wide, source="collaborative")


def test_the_plan_notices_another_compressor(tmp_path: Path) -> None:
    found = []
    for seed in (1, 2):
        run = compressor_run(tmp_path / str(seed), seed=seed)
        chosen = OfflineSettings.parse({"semantic_ids": {"compressor": str(run)}})
        jobs = plan(Tables((), time_is_order=False), tmp_path / "work", chosen, "build")
        found.append(next(dict(job.files) for job in jobs if job.name == "semantic_ids"))
    assert found[0].keys() == {"compressor"}
    assert found[0] != found[1]
