"""From a training run and a work directory to a published bundle."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow.parquet as pq

from recsys.bundle.bundle import ALL_SCENES, RETRIEVAL
from recsys.bundle.compaction import fold_log
from recsys.bundle.external import EXTERNAL
from recsys.bundle.fusion import FUSION, copy_fusion
from recsys.bundle.gate import basis_of
from recsys.bundle.loading import load_model
from recsys.bundle.manifest import BundleManifest, TrainingData
from recsys.bundle.provenance import code_version
from recsys.catalog import Catalog
from recsys.catalog.arrays import save_array
from recsys.catalog.folding import CHANGES, write_folded
from recsys.datasets.prepared import PreparedData, read_job
from recsys.errors import DataError, VersionMismatchError
from recsys.models import ItemFeatures
from recsys.semantic_ids.artefact import ASSIGNED
from recsys.storage import read_json, sha256_file, sha256_parts, write_json_atomically

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    import pyarrow as pa

    from recsys.bundle.registry import Registry
    from recsys.catalog.log import CatalogLog
    from recsys.datasets.prepared import Sequences
    from recsys.models import AnyRecommender

RUN_FORMAT: Final = "windfire.run/1"
_MODEL_FILES: Final = ("config.json", "weights.safetensors")


def model_files(run: Path) -> tuple[str, ...]:
    """Names of the files below a run's model/; those of an imported model say where its weights are."""
    return (*_MODEL_FILES, EXTERNAL) if (run / "model" / EXTERNAL).is_file() else _MODEL_FILES


def publish_run(
    registry: Registry,
    *,
    run: Path,
    work: Path,
    created: datetime,
    catalog_sequence: int = 0,
    log: CatalogLog | None = None,
    make_current: bool = True,
) -> BundleManifest:
    """Publish a trained recommender with the catalog it was trained on, and what `windfire train fusion` fitted to it.

    Args:
        registry: where to.
        run: what `windfire train recommender` wrote.
        work: what `windfire offline run` wrote, and the run was trained on.
        created: UTC; names the version.
        catalog_sequence: the catalog log's sequence number that the work directory stands at.
        log: of the registry's catalogue, to be folded in from there on; None = workers replay it.
        make_current: whether to serve it from now on.

    Returns:
        The manifest of the new version; of the earlier one when it holds the very same files.

    Raises:
        DataError: the run or the work directory is incomplete, or weights are not finite.
        VersionMismatchError: the run was trained with another tokenizer or on another catalog, or its fusion was fitted
            to other weights.
        CorruptionError: a record of the log is damaged.
    """
    run_manifest = load_run_manifest(run)
    model_version = model_version_of(run)

    def write(directory: Path) -> BundleManifest:
        data = PreparedData.load(work)
        check_run(run, run_manifest, data)
        write_tables(directory, data, work)
        (directory / "model").mkdir()
        for name in model_files(run):
            shutil.copyfile(run / "model" / name, directory / "model" / name)
        if (work / RETRIEVAL).is_dir():
            _take_indexes(work, directory, data)
        copy_fusion(run / FUSION, directory / FUSION, model_version=model_version)
        folded = None if log is None else fold_log(registry, log, catalog_sequence)
        if folded is not None:
            write_folded(directory / CHANGES, folded)
        return BundleManifest(
            version="",
            model_version=model_version,
            tokenizer_version=data.tokenizer_version,
            catalog_sequence=catalog_sequence if folded is None else folded.end,
            items=data.items.num_rows,
            created=created.isoformat(),
            training=training_data(data.sequences, work),
            code_version=code_version(),
            metrics=run_manifest["metrics"],
            measured_on=basis_of(data, run_manifest["settings"]),
            config={"settings": run_manifest["settings"], "seed": run_manifest["seed"]},
        )

    return registry.publish(f"{created:%Y%m%dT%H%M%S.%fZ}-{model_version}", write, make_current=make_current)


def model_version_of(run: Path) -> str:
    """The name of a run's weights and configuration, derived from their bytes."""
    return sha256_parts([sha256_file(run / "model" / name) for name in model_files(run)])[:12]


def load_run_manifest(run: Path) -> dict[str, Any]:
    """Read a training run's manifest.

    Raises:
        DataError: the run is not finished, is of another format, or its model is missing.
    """
    missing = [
        name for name in ("manifest.json", *(f"model/{name}" for name in _MODEL_FILES)) if not (run / name).is_file()
    ]
    if missing:
        raise DataError(
            f"no finished training run in {run}",
            field="file",
            value=missing[0],
            remedy="run `windfire train recommender` first; the same command again continues an interrupted one",
        )
    try:
        manifest: dict[str, Any] = read_json(run / "manifest.json")
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"the run's manifest is not JSON: {error}", field="run", value=str(run)) from error
    if manifest.get("format") != RUN_FORMAT:
        raise DataError(f"the run has another format than {RUN_FORMAT}", field="format", value=manifest.get("format"))
    return manifest


def check_run(run: Path, manifest: dict[str, Any], data: PreparedData) -> AnyRecommender:
    """Refuse a model that does not belong to the work directory, or that could not be loaded again.

    Returns:
        The model, in evaluation mode.

    Raises:
        VersionMismatchError: another tokenizer, catalog or codebooks.
        DataError: the weights do not fit the configuration or are not finite.
    """
    if manifest["tokenizer_version"] != data.tokenizer_version:
        raise VersionMismatchError(
            f"the run was trained with another tokenizer than {data.tokenizer_version} of the work directory",
            field="tokenizer_version",
            value=manifest["tokenizer_version"],
            remedy="publish with the work directory it was trained on, or train again",
        )
    features = ItemFeatures(data.codes, data.text, data.collaborative, data.train_counts)
    return load_model(run / "model", features, data.codebook_sizes)


def write_tables(directory: Path, data: PreparedData, work: Path) -> None:
    """Write everything of a bundle but the model and the manifest into an empty directory."""
    pq.write_table(data.items, directory / "items.parquet", compression="zstd")
    for name in ("codes", "text", "collaborative", "train_counts"):
        save_array(directory / f"{name}.npy", getattr(data, name))
    for folder in ("catalog", "popularity", "item_to_item", "tokenizer"):
        (directory / folder).mkdir()
    Catalog.build(data.items).save(directory / "catalog")
    _write_popularity(directory / "popularity", read_job(work, "popularity"))
    _write_item_to_item(directory / "item_to_item", read_job(work, "item_to_item"), len(data.codes))
    for path in sorted((work / "semantic_ids").iterdir()):
        if path.suffix in {".json", ".npy"} and path.name != "manifest.json":
            shutil.copyfile(path, directory / "tokenizer" / path.name)
    if (work / "semantic_ids" / ASSIGNED).is_dir():  # an imported tokenizer has none
        shutil.copytree(work / "semantic_ids" / ASSIGNED, directory / "tokenizer" / ASSIGNED)


def _take_indexes(work: Path, directory: Path, data: PreparedData) -> None:
    from recsys.retrieval.folder import copy_retrieval  # with faiss, which a bundle without indexes spares

    copy_retrieval(
        work,
        directory / RETRIEVAL,
        item_ids=data.items["item_id"].to_pylist(),
        vectors={"text": data.text, "collaborative": data.collaborative},
    )


def training_data(sequences: Sequences, work: Path) -> TrainingData:
    """Count and date the interactions that training saw."""
    lengths = np.diff(sequences.offsets)
    place = np.arange(len(sequences.items)) - np.repeat(sequences.offsets[:-1], lengths)  # (E,) position per user
    times = sequences.times[place < np.repeat(sequences.train_end, lengths)]
    cleaned = work / "clean" / "manifest.json"
    return TrainingData(
        offset=read_json(cleaned)["counts"]["read"] if cleaned.is_file() else None,
        events=len(times),
        first_time=int(times.min()) if len(times) else None,
        last_time=int(times.max()) if len(times) else None,
    )


def _write_popularity(directory: Path, table: pa.Table) -> None:
    ordered = table.sort_by([("scene", "ascending"), ("count", "descending"), ("item_index", "ascending")])
    scene = np.asarray(ordered["scene"].to_pylist(), dtype=object)
    scenes = sorted({ALL_SCENES, *scene})
    write_json_atomically(directory / "scenes.json", scenes)
    ends = [int((scene == name).sum()) for name in scenes]
    save_array(directory / "offsets.npy", np.concatenate([[0], np.cumsum(ends)]).astype(np.int64))
    save_array(directory / "items.npy", ordered["item_index"].to_numpy().astype(np.int32))


def _write_item_to_item(directory: Path, table: pa.Table, items: int) -> None:
    ordered = table.sort_by([("item_index", "ascending"), ("rank", "ascending")])
    counts = np.bincount(ordered["item_index"].to_numpy(), minlength=items)
    save_array(directory / "offsets.npy", np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
    save_array(directory / "neighbours.npy", ordered["neighbour"].to_numpy().astype(np.int32))
    save_array(directory / "scores.npy", ordered["score"].to_numpy().astype(np.float32))
