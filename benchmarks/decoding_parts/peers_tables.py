"""Tables of the peers: times, throughput, quality, goodput."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from benchmarks.table import Table

if TYPE_CHECKING:
    from benchmarks.figures import Figure

    Named = dict[str, Figure]

_ABSENT: Final = "-"
_STEM: Final = re.compile(r"(decoding\.(\w+)\.beam(\d+)\.(\w+))\.(.+)")


def stems(figures: Named, ending: str) -> list[tuple[str, str]]:
    """(stem, label) of every backbone, beam and method that has a figure with this ending, in their order."""
    found = []
    for name in figures:
        match = _STEM.fullmatch(name)
        if match and match[5] == ending:
            found.append((match[1], f"{match[2]}, beam {match[3]}, {match[4]}"))
    return found


def cell(figures: Named, name: str, form: str = ".3g") -> str:
    """A value, or the sign for an absent one."""
    figure = figures.get(name)
    return _ABSENT if figure is None else f"{figure.value:{form}}"


def times_table(figures: Named) -> Table:
    """Milliseconds at batch 1."""
    rows = [
        [label, *(cell(figures, f"{stem}.{column}") for column in ("ms", "p95_ms", "p99_ms", "over_nezha"))]
        for stem, label in stems(figures, "ms")
    ]
    header = ["backbone, beam, method", "p50 ms", "p95 ms", "p99 ms", "over nezha"]
    return Table("one request, one thread", header, rows)


def throughput_table(figures: Named) -> Table:
    """Requests per second in batches."""
    pattern = re.compile(r".+\.batch(\d+)_per_second")
    batches = sorted({int(match[1]) for name in figures if (match := pattern.fullmatch(name))})
    columns = [f"batch{batch}_per_second" for batch in batches]
    rows = [
        [label, *(cell(figures, f"{stem}.{column}", ".4g") for column in columns)]
        for stem, label in (stems(figures, columns[0]) if columns else [])
    ]
    header = ["backbone, beam, method", *(f"batch {batch}, requests/s" for batch in batches)]
    return Table("throughput, one thread", header, rows)


def quality_table(figures: Named) -> Table:
    """Recall and agreement on the trained weights."""
    pattern = re.compile(r".+\.recall@(\d+)")
    ks = sorted({int(match[1]) for name in figures if "beam" in name and (match := pattern.fullmatch(name))})
    rows = []
    for stem, label in stems(figures, "recall@10"):
        recalls = [cell(figures, f"{stem}.recall@{k}", ".4f").removeprefix("0") for k in ks]
        agreements = [cell(figures, f"{stem}.agreement@{k}", ".4f").removeprefix("0") for k in ks]
        rows.append([label, *recalls, *agreements, str(figures[f"{stem}.recall@10"].n)])
    header = ["backbone, beam, method", *(f"Recall@{k}" for k in ks), *(f"agreement@{k}" for k in ks), "users"]
    return Table("test users, history not masked", header, rows)


def goodput_table(figures: Named) -> Table:
    """Requests per second on one core."""
    pattern = re.compile(r"decoding\.goodput\.(\w+)\.p99_(\d+)ms\.requests_per_second")
    found = [match for name in figures if (match := pattern.fullmatch(name))]
    limits = sorted({int(match[2]) for match in found})
    rows = []
    for method in dict.fromkeys(match[1] for match in found):
        stem = f"decoding.goodput.{method}"
        rates = [cell(figures, f"{stem}.p99_{limit}ms.requests_per_second", ".0f") for limit in limits]
        rows.append([method.replace("_", ", ", 1), figures[f"{stem}.recall@10"].note, *rates])
    header = ["backbone, method", "at", *(f"p99 at most {limit} ms, requests/s" for limit in limits)]
    return Table("goodput of one core", header, rows)
