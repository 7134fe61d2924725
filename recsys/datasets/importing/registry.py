"""All importers by name, and the one function that runs them."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from recsys.datasets.importing.amazon import open_amazon2014, open_amazon2018
from recsys.datasets.importing.assembly import Assembly, SourceDataset
from recsys.datasets.importing.chunks import Limits, Reading
from recsys.datasets.importing.generic import open_log
from recsys.datasets.importing.kuairand import open_kuairand
from recsys.datasets.importing.movielens import open_movielens
from recsys.datasets.importing.sink import Sink
from recsys.errors import ConfigError, InputError
from recsys.records import TablesManifest, tables_place
from recsys.storage import sha256_file, staged_directory

if TYPE_CHECKING:
    from collections.abc import Callable

PUBLIC_SETS: Final[dict[str, Callable[[Path], SourceDataset]]] = {
    "amazon2014": open_amazon2014,
    "amazon2018": open_amazon2018,
    "movielens": open_movielens,
    "kuairand": open_kuairand,
}
EVENT_LOG: Final = "eventlog"
EXPOSURE_LOG: Final = "exposurelog"
OWN_LOGS: Final = {"generic": None, "csv": "csv", "jsonl": "jsonl", "parquet": "parquet"}  # name to forced format


class Progress(Protocol):
    """Is told how far an import has come."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`stage` is "read" (source bytes) or "write" (partitions)."""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did, or with `check` would do.

    Attributes:
        manifest: counts, reasons and notes, as in the tables' manifest.json.
        users: users with at least one event, and those that a users file names.
        items: items written.
        time_range: first and last event in microseconds; None where the source has no times.
        examples: reason to the first rejected rows, `FILE:LINE: DETAIL`.
        columns: field of the events to the column it comes from.
        ignored_columns: columns of the log that go nowhere.
    """

    manifest: TablesManifest
    users: int
    items: int
    time_range: tuple[int, int] | None
    examples: dict[str, list[str]]
    columns: dict[str, str]
    ignored_columns: tuple[str, ...]


def known_datasets() -> list[str]:
    """The names that `import_dataset` takes."""
    return [*PUBLIC_SETS, *OWN_LOGS, EVENT_LOG, EXPOSURE_LOG]


def import_dataset(
    name: str,
    source: Path,
    out: Path | None = None,
    *,
    mapping: Path | None = None,
    check: bool = False,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> ImportReport:
    """Read a log and write it as tables.

    Args:
        name: one of `known_datasets`.
        source: the file or folder.
        out: the tables' directory, whole or absent afterwards; an existing one is replaced. May be None with `check`.
        mapping: a mapping file for one's own logs.
        check: report and write nothing.
        limits: what bounds the memory.
        progress: is told of the progress.

    Raises:
        InputError: the name is unknown, the source cannot be read, lacks a column, or has no usable event.
        ConfigError: `out` holds something else than tables, or the source itself.
    """
    if out is None and not check:
        raise InputError("no directory for the tables", field="out", remedy="name one, or use check")
    started = time.perf_counter()
    dataset = _open(name, source, mapping)
    limits = limits or Limits()
    if check or out is None:
        with tempfile.TemporaryDirectory(prefix="windfire-check-") as scratch:
            sink = _run(dataset, None, Path(scratch), limits, progress)
        return _report(dataset, sink, _manifest(name, dataset, sink, started, None))
    with staged_directory(_place(out, source)) as staged:
        scratch_folder = staged / "scratch"
        sink = _run(dataset, staged, scratch_folder, limits, progress)
        shutil.rmtree(scratch_folder)
        if not sink.written["events"]:
            raise _nothing_usable(source, sink)
        manifest = _manifest(name, dataset, sink, started, source if source.is_dir() else source.parent)
        manifest.save(staged)
    return _report(dataset, sink, manifest)


def _place(out: Path, source: Path) -> Path:
    """Where the tables go; the directory is replaced, so the log may not stand in it."""
    place = tables_place(out)
    log = source.resolve()
    if place == log or place in log.parents:
        raise ConfigError(
            "the log stands in the directory that the tables replace",
            field="out",
            value=str(out),
            remedy="choose another directory",
        )
    return place


def _open(name: str, source: Path, mapping: Path | None) -> SourceDataset:
    if name not in known_datasets():
        raise InputError(
            "unknown dataset name", field="dataset", value=name, remedy=f"use one of {', '.join(known_datasets())}"
        )
    if not source.exists():
        raise InputError("no such file or folder", field="source", value=str(source), remedy="check the path")
    if name in OWN_LOGS:
        return open_log(source, mapping, OWN_LOGS[name])
    if name in {EVENT_LOG, EXPOSURE_LOG}:
        from recsys.datasets.importing.own_log import open_event_log, open_exposure_log

        return (open_event_log if name == EVENT_LOG else open_exposure_log)(source, mapping)
    if mapping is not None:
        raise InputError(
            f"{name} needs no mapping file", field="mapping", value=str(mapping), remedy="leave the mapping out"
        )
    return PUBLIC_SETS[name](source)


def _run(
    dataset: SourceDataset, directory: Path | None, scratch: Path, limits: Limits, progress: Progress | None
) -> Sink:
    for table in dataset.tables:
        table.plan.check(table.files)
    total = sum(path.stat().st_size for table in dataset.tables for path in table.paths)
    done = 0

    def advance(amount: int) -> None:
        nonlocal done
        done += amount
        if progress is not None:
            progress("read", done, total)

    def written(partitions: int, of: int) -> None:
        if progress is not None:
            progress("write", partitions, of)

    sink = Sink(directory, limits.row_group_rows)
    with closing(sink):
        Assembly(dataset, sink, scratch, Reading(limits, advance), written).run()
    if not sink.counts()["events"].read:
        raise InputError(
            "the log is empty",
            field="source",
            value=", ".join(file.name for file in dataset.events.files),
            remedy="check that this is the right file: it has no row",
        )
    return sink


def _nothing_usable(source: Path, sink: Sink) -> InputError:
    reason, count = sink.reasons.most_common(1)[0]
    return InputError(
        f"every row was rejected; {count} for {reason}, the first: {sink.examples[reason][0]}",
        field="source",
        value=str(source),
        remedy="see all reasons with --check, then correct the source or the mapping file",
    )


def _manifest(name: str, dataset: SourceDataset, sink: Sink, started: float, root: Path | None) -> TablesManifest:
    paths = [path for table in dataset.tables for path in table.paths]
    ignored = {"ignored_columns": len(dataset.ignored_columns)} if dataset.ignored_columns else {}
    return TablesManifest(
        dataset=name,
        time_is_order=dataset.time_is_order,
        sources={} if root is None else {os.path.relpath(path, root): sha256_file(path) for path in paths},
        counts=sink.counts(),
        reasons=dict(sink.reasons),
        notes={**sink.notes, **ignored},
        line_ids=sorted(sink.line_ids),
        seconds=round(time.perf_counter() - started, 3),
    )


def _report(dataset: SourceDataset, sink: Sink, manifest: TablesManifest) -> ImportReport:
    ends = None if sink.earliest is None or sink.latest is None else (sink.earliest, sink.latest)
    fields = dataset.events.plan.fields
    return ImportReport(
        manifest=manifest,
        users=sink.written["users"],
        items=sink.written["items"],
        time_range=ends,
        examples=sink.examples,
        columns={field.name: field.column for field in fields if field.column is not None},
        ignored_columns=dataset.ignored_columns,
    )
