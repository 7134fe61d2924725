"""The pipeline: from table directories to everything that training, evaluation and publishing read."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from offline.job import Job, JobManifest, exclusive, run_job
from offline.jobs import (
    catalog,
    clean,
    cooccurrence,
    core,
    semantic_ids,
    sequences,
    splits,
    text_embeddings,
    vectors,
)
from offline.session import LazySession, is_local
from offline.tables import Tables
from recsys.errors import ConfigError, DataError
from recsys.processor import has_bfloat16
from recsys.storage import restore_directory
from recsys.text.encoder import model_directory, model_fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pydantic import BaseModel
    from pyspark.sql import SparkSession

    from offline.settings import OfflineSettings, TextSettings

TokenizerMode = Literal["build", "extend"]
_BRIEF_EVENTS = 2_000_000
_SCRATCH = ".spark"
JOBS = (
    "clean",
    "core",
    "catalog",
    "sequences",
    "splits",
    "training",
    "items",
    "text_embeddings",
    "cooccurrence",
    "collaborative",
    "semantic_ids",
    "popularity",
    "item_to_item",
)


def run_pipeline(
    tables: Path,
    work: Path,
    settings: OfflineSettings,
    *,
    master: str = "local[*]",
    increments: Sequence[Path] = (),
    tokenizer: TokenizerMode | None = "build",
    spark: Mapping[str, str] | None = None,
    session: SparkSession | None = None,
    on_start: Callable[[str], object] | None = None,
    on_done: Callable[[JobManifest], object] | None = None,
) -> list[JobManifest]:
    """Run every job whose inputs, settings or code changed.

    Args:
        tables: the base directory of imported tables.
        work: where the outputs stand, one folder per job; made when absent.
        settings: of all jobs.
        master: a Spark master URL; on a cluster all paths must be on a file system that its workers share.
        increments: later table directories, oldest first. With those of the previous run before them, the tables
            are updated instead of made anew wherever that gives the same result.
        tokenizer: `build` new semantic IDs, or `extend`: items keep theirs, new items get free ones. None extends where
            there are increments and semantic IDs.
        spark: Spark settings that overrule the defaults.
        session: a running session to use instead of starting one; it is left running.
        on_start: told a job's name before it begins.
        on_done: told a job's manifest when it has ended or was skipped.

    Returns:
        The manifests in the order of `JOBS`; `skipped` says which outputs were left as they were.

    Raises:
        ConfigError: settings that contradict the source, or a work directory that holds something else.
        DataError: missing or unfit tables, or nothing to learn from.
        UnavailableError: another run holds the work directory, or Spark does not start.
    """
    opened = Tables.open([Path(tables).resolve(), *(Path(path).resolve() for path in increments)])
    work = Path(work).resolve()
    brief = is_local(master) and opened.rows("events") < _BRIEF_EVENTS
    _require_place(work)
    with (
        exclusive(work),
        _scratch(work) as scratch,
        LazySession(master, config=spark, session=session, brief=brief, scratch=scratch) as lazy,
    ):
        for name in JOBS:
            restore_directory(work / name)
        if tokenizer is None:
            tokenizer = "extend" if increments and semantic_ids.tokenizer_version(work) is not None else "build"
        manifests: list[JobManifest] = []
        for job in plan(opened, work, settings, tokenizer):
            if on_start is not None:
                on_start(job.name)
            manifests.append(run_job(job, work, lazy))
            if on_done is not None:
                on_done(manifests[-1])
    return manifests


def _require_place(work: Path) -> None:
    """Refuse a work directory in which a job's output would replace something that no job wrote."""
    for name in JOBS:
        folder = work / name
        if folder.exists() and not (folder / "manifest.json").is_file():
            raise ConfigError(
                f"the work directory has a folder {name} that no job wrote",
                field="out",
                value=str(work),
                remedy="choose another directory; the tables cannot be their own work directory",
            )


@contextmanager
def _scratch(work: Path) -> Iterator[Path]:
    """Spark's scratch inside a held work directory; shuffle files of a killed run go first."""
    scratch = work / _SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)  # the Java process of a killed run may still be ending in there
    scratch.mkdir(exist_ok=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def plan(tables: Tables, work: Path, settings: OfflineSettings, tokenizer: TokenizerMode) -> list[Job]:
    """The jobs in the order in which they run.

    Raises:
        ConfigError: a split by time of a source without times, a text model that is not there, or a warm start from
            this very work directory or of a tokenizer that is extended.
        DataError: a tokenizer to extend or to begin with that is not there.
    """
    if settings.split.strategy == "global_time" and tables.time_is_order:
        raise splits.no_times_error(settings.split.strategy)
    events, items = tables.fingerprints("events"), tables.fingerprints("items")
    core_settings, split = _plain(settings.core), _plain(settings.split)
    actions = settings.positive_actions
    return [
        Job("clean", clean.VERSION, lambda c: clean.clean(c, tables), files={**events, **items}),
        Job(
            "core",
            core.VERSION,
            lambda c: core.core(c, actions, settings.core),
            needs=("clean",),
            settings={**core_settings, "positive_actions": sorted(actions)},
        ),
        Job(
            "catalog",
            catalog.VERSION,
            lambda c: catalog.catalog(c, tables, settings.core),
            needs=("core",) if settings.core.min_item_events > 1 else (),
            files=items,
            settings={"min_item_events": settings.core.min_item_events},
        ),
        Job("sequences", sequences.VERSION, sequences.sequences, needs=("core", "catalog")),
        Job("splits", splits.VERSION, lambda c: splits.splits(c, settings.split), needs=("sequences",), settings=split),
        Job("training", splits.TRAINING_VERSION, splits.training, needs=("sequences", "splits", "catalog")),
        Job("items", catalog.ITEMS_VERSION, catalog.items, needs=("catalog", "training")),
        _text_job(settings.text),
        Job(
            "cooccurrence",
            cooccurrence.VERSION,
            lambda c: cooccurrence.cooccurrence(c, settings.cooccurrence),
            needs=("training", "catalog"),
            settings=_plain(settings.cooccurrence),
        ),
        Job(
            "collaborative",
            vectors.COLLABORATIVE_VERSION,
            lambda c: vectors.collaborative(c, settings.collaborative),
            needs=("cooccurrence", "catalog"),
            settings=_plain(settings.collaborative),
        ),
        _semantic_ids_job(work, settings, tokenizer),
        Job("popularity", cooccurrence.POPULARITY_VERSION, cooccurrence.popularity, needs=("training",)),
        Job(
            "item_to_item",
            cooccurrence.NEIGHBOURS_VERSION,
            lambda c: cooccurrence.item_to_item(c, settings.item_to_item),
            needs=("cooccurrence",),
            settings=_plain(settings.item_to_item),
        ),
    ]


def _text_job(text: TextSettings) -> Job:
    directory = model_directory(text.model)
    bfloat16 = directory is not None and (text.precision == "bfloat16" or (text.precision == "auto" and has_bfloat16()))
    files: dict[str, str] = {}
    if directory is not None:
        files["model"] = model_fingerprint(directory)
    return Job(
        "text_embeddings",
        text_embeddings.VERSION,
        lambda c: text_embeddings.text_embeddings(c, model=text.model, max_tokens=text.max_tokens, bfloat16=bfloat16),
        needs=("catalog",),
        files=files,
        settings={"max_tokens": text.max_tokens, "bfloat16": bfloat16, "hashing": directory is None, **files},
    )


def _semantic_ids_job(work: Path, settings: OfflineSettings, tokenizer: TokenizerMode) -> Job:
    if tokenizer == "build":
        return Job(
            "semantic_ids",
            semantic_ids.VERSION,
            lambda c: semantic_ids.build_semantic_ids(c, settings.semantic_ids),
            needs=("catalog", "text_embeddings", "collaborative"),
            files={
                **semantic_ids.warm_start_files(work, settings.semantic_ids),
                **semantic_ids.compressor_files(settings.semantic_ids),
            },
            settings=settings.semantic_ids.described(),
        )
    if settings.semantic_ids.warm_start is not None:
        raise ConfigError(
            "a tokenizer that is extended keeps its codebooks: there is nothing to warm-start",
            field="warm_start",
            value=str(settings.semantic_ids.warm_start),
            remedy="use --tokenizer build, or leave the warm start out",
        )
    version = semantic_ids.tokenizer_version(work)
    if version is None:
        raise DataError(
            "this work directory holds no tokenizer to extend",
            field="tokenizer",
            value=tokenizer,
            remedy="run once with --tokenizer build",
        )
    return Job(
        "semantic_ids",
        semantic_ids.VERSION,
        semantic_ids.extend_semantic_ids,
        needs=("catalog", "text_embeddings"),
        settings={"tokenizer_version": version},
    )


def _plain(section: BaseModel) -> dict[str, Any]:
    return section.model_dump(mode="json")
