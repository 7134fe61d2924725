"""How many engines a service needs, by arithmetic from what one decode costs: the table of deploy/README.md."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from benchmarks.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.figures import Figure, Report

ITEMS: Final = (100_000, 1_000_000, 10_000_000)
RATES: Final = (100, 1_000, 10_000, 100_000)
LOAD: Final = 0.7  # share of its time that an engine is to be busy; the rest is for bursts


def is_mark(rest: str) -> bool:
    """Whether a table has the mark that ends so."""
    return not rest


def marked_table(rest: str, report: Report) -> Table:
    """Of the mark `sizes`."""
    del rest
    return sizes_table({figure.name: figure for figure in report.figures})


def engines(rate: float, milliseconds: float) -> int:
    """Processes of one core, each busy for LOAD of its time.

    Args:
        rate: requests per second.
        milliseconds: of one request in the engine.
    """
    # Rounded, lest an exact 500 become 501.
    return max(1, math.ceil(round(rate * milliseconds / 1_000 / LOAD, 9)))


def sizes_table(figures: Mapping[str, Figure]) -> Table:
    """One row per number of items."""
    rows = []
    for items in ITEMS:
        stem = f"decoding.crossover.items{items}"
        cost, memory = figures[f"{stem}.nezha_beam50.ms"].value, figures[f"{stem}.nezha.bytes"].value
        cells = [f"{engines(rate, cost):,}" for rate in RATES]
        rows.append([f"{items:,}", f"{cost:.2f}", f"{memory / 1e6:.1f}", *cells])
    header = ["items", "ms per request", "trie and head, MB", *(f"engines at {rate:,}/s" for rate in RATES)]
    return Table(f"engines of one core, busy {LOAD:.0%} of the time", header, rows)
