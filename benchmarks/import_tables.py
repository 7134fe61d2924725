"""The table of `windfire bench import-model`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from benchmarks.table import Table

if TYPE_CHECKING:
    from benchmarks.figures import Figure, Report

    Named = dict[str, Figure]


def is_mark(rest: str) -> bool:
    """Whether a table has the mark that ends so."""
    return bool(rest)


def marked_table(rest: str, report: Report) -> Table:
    """Of the mark `import-FAMILY`."""
    return import_table(rest, {figure.name: figure for figure in report.figures})


def import_table(family: str, figures: Named) -> Table:
    """What an imported model's decoders answer, and in which time."""
    columns = {
        "same first item as beam": "top1", "top 10 shared": "top10", "Recall@10": "recall@10", "NDCG@10": "ndcg@10",
        "ineligible": "ineligible", "ms": "ms",
    }  # fmt: skip
    pattern = re.compile(rf"import\.{family}\.(\w+)\.ms")
    names = [match[1] for name in figures if (match := pattern.fullmatch(name))]
    rows = [
        [name, *(f"{figures[f'import.{family}.{name}.{one}'].value:.3g}" for one in columns.values())] for name in names
    ]
    return Table(f"{family}, one request", ["decoder", *columns], rows)
