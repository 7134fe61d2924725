"""Tables of `windfire bench rere-speed`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from benchmarks.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.figures import Figure, Report

    Named = dict[str, Figure]

_METHODS: Final = {
    "compact": "ours, compact run",
    "head": "ours, draft head of the token shape",
    "beam": "shared-KV beam, token shape",
    "hf_generate": "`generate` with a prefix function, token shape",
}


def rollouts_table(figures: Named) -> Table:
    """Rollouts per second."""
    rows = []
    for name, title in _METHODS.items():
        stem = f"rere_speed.rollouts.{name}"
        if f"{stem}.per_s" not in figures:
            continue
        per_second, times = figures[f"{stem}.per_s"], figures.get(f"{stem}.over_hf_generate")
        cells = [f"{per_second.value:.0f}", f"{per_second.low:.0f} to {per_second.high:.0f}"]
        rows.append(
            [title, *cells, f"{figures[f'{stem}.ms'].value:.1f}", "1" if times is None else f"{times.value:.1f}"]
        )
    return Table("Rollouts", ["rollouts by", "per second", "95 %", "ms per call", "times `generate`"], rows)


def training_table(figures: Named) -> Table:
    """Trainings in one process and in several."""
    pattern = re.compile(r"rere_speed\.train\.(\w+)\.seconds")
    rows = []
    for arm in [match[1] for name in figures if (match := pattern.fullmatch(name))]:
        stem = f"rere_speed.train.{arm}"
        seconds = figures[f"{stem}.seconds"]
        speedups = [figures.get(f"{stem}.{name}") for name in ("speedup", "loop_speedup")]
        times = [figures[f"{stem}.{name}"].value for name in ("loop_seconds", "cpu_seconds")]
        quality = [figures[f"{stem}.{name}"].value for name in ("start_ndcg@10", "last_ndcg@10", "ndcg@10")]
        rows.append(
            [
                "one process, two threads" if arm == "sync" else f"two processes, alpha {arm.removeprefix('alpha')}",
                f"{seconds.value:.1f} ({seconds.low:.1f} to {seconds.high:.1f})",
                *(f"{value:.1f}" for value in times),
                *("1" if found is None else f"{found.value:.2f}" for found in speedups),
                *(f"{value:.4f}".removeprefix("0") for value in quality),
            ]
        )
    header = [
        "training", "wall s (range)", "of these in the loop", "CPU s", "times faster", "in the loop",
        "NDCG@10 at the start", "at the end", "kept",
    ]  # fmt: skip
    return Table("ReRe, equal steps; validation, history masked", header, rows)


TABLES: Final[dict[str, Callable[[Named], Table]]] = {
    "": rollouts_table,
    "training": training_table,
}


def is_mark(rest: str) -> bool:
    """Whether a table has the mark that ends so."""
    return rest in TABLES


def marked_table(rest: str, report: Report) -> Table:
    """Of the mark `rere-speed` or `rere-speed-training`."""
    return TABLES[rest]({figure.name: figure for figure in report.figures})
