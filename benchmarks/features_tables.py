"""Tables of the feature store."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from benchmarks.decoding_parts.peers_tables import cell
from benchmarks.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.figures import Figure, Report

    Named = dict[str, Figure]

_TITLES: Final = {
    "redis": "Redis",
    "embedded": "embedded (LMDB)",
    "feast": "Feast, in a process of its own",
    "feast_hashes": "this reader on Feast's hashes",
    "raw_pipeline": "raw pipeline of GETs",
    "raw_mget": "raw MGET",
}


def reads_table(figures: Named) -> Table:
    """One row per store and raw command, the entities beside each other."""
    pattern = re.compile(r"features\.(\w+)\.entities(\d+)\.p50")
    found = [(match[1], match[2]) for name in figures if (match := pattern.fullmatch(name))]
    stores, counts = (list(dict.fromkeys(values)) for values in zip(*found, strict=True)) if found else ([], [])
    header = ["three views of"]
    for count in counts:
        header += [f"{count}: p50 ms", "p99 ms", "over raw"]
    rows = []
    for store in stores:
        stems = [f"features.{store}.entities{count}" for count in counts]
        cells = [cell(figures, f"{stem}.{figure}") for stem in stems for figure in ("p50", "p99", "over_raw")]
        rows.append([_TITLES[store], *cells])
    return Table("reads of the feature store", header, rows)


def writes_table(figures: Named) -> Table:
    """Single writes, and what many reads in a row change."""
    columns = ("put.p50", "put.p99", "merge.p50", "merge.p99", "soak.p50_ratio", "soak.rss_growth_mib")
    header = [
        "store",
        "put p50 ms",
        "p99 ms",
        "merge p50 ms",
        "p99 ms",
        "last over first tenth of the reads",
        "MiB grown",
    ]
    stores = [store for store in _TITLES if f"features.{store}.put.p50" in figures]
    rows = [[_TITLES[store], *(cell(figures, f"features.{store}.{name}") for name in columns)] for store in stores]
    return Table("writes to the feature store", header, rows)


def events_table(figures: Named) -> Table:
    """How soon an event is in the next recommendation."""
    columns = ("event_visible.p50", "event_visible.p99", "event_visible.at_once")
    stores = [store for store in _TITLES if f"features.{store}.event_visible.p50" in figures]
    rows = [[_TITLES[store], *(cell(figures, f"features.{store}.{name}") for name in columns)] for store in stores]
    return Table("from an event to the next recommendation", ["store", "p50 ms", "p99 ms", "in the first answer"], rows)


_STEPS: Final = {
    "sdown": "a sentinel believes that the master is dead",
    "odown": "two do",
    "elected_leader": "one is elected to act",
    "promoted_slave": "the replica says that it is a master",
    "switch_master": "the sentinels name it",
    "seconds": "a write is acknowledged",
}


def failover_table(figures: Named) -> Table:
    """Seconds after a master was killed."""
    rows = [
        [title, cell(figures, f"features.failover.{name}")]
        for name, title in _STEPS.items()
        if f"features.failover.{name}" in figures
    ]
    for name, title in (
        ("lost", "acknowledged events lost"),
        ("missing", "of these missing after the log was sent again"),
    ):
        if f"features.failover.{name}" in figures:
            rows.append([title, cell(figures, f"features.failover.{name}")])
    return Table("a Redis master is killed", ["until", "s, median of the kills"], rows)


TABLES: Final[dict[str, Callable[[Named], Table]]] = {
    "": reads_table,
    "writes": writes_table,
    "events": events_table,
    "failover": failover_table,
}


def is_mark(rest: str) -> bool:
    """Whether a table has the mark that ends so."""
    return rest in TABLES


def marked_table(rest: str, report: Report) -> Table:
    """Of the mark `features` or `features-writes`."""
    return TABLES[rest]({figure.name: figure for figure in report.figures})
