"""Tables of the crossover, and the size at which it falls."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.decoding_parts.peers_tables import cell
from benchmarks.figures import Figure
from benchmarks.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.decoding_parts.settings import CrossoverSettings

    Named = dict[str, Figure]

_RIVALS: Final = ("nezha", "flat", "ann_hnsw", "ann_ivfpq")
_GIGA: Final = 1e9


def crossing(figures: Sequence[Figure], settings: CrossoverSettings) -> list[Figure]:
    """`decoding.crossover.beam<B>.items`: where nezha at a width costs as much as `flat`, between measured sizes.

    Absent where one of them is the cheaper at every size.
    """
    named = {figure.name: figure.value for figure in figures}
    sizes = sorted(settings.items)
    result = []
    for beam in settings.beams:
        nezha = [named[f"decoding.crossover.items{items}.nezha_beam{beam}.ms"] for items in sizes]
        flat = [named[f"decoding.crossover.items{items}.flat.ms"] for items in sizes]
        gap = np.log(flat) - np.log(nezha)  # above 0 nezha is the cheaper
        turns = np.flatnonzero((gap[:-1] <= 0) & (gap[1:] > 0))
        if len(turns):
            low = int(turns[-1])
            share = -gap[low] / (gap[low + 1] - gap[low])
            at = float(np.exp(np.log(sizes[low]) + share * (np.log(sizes[low + 1]) - np.log(sizes[low]))))
            note = f"between {sizes[low]:,} and {sizes[low + 1]:,} items, on logarithmic scales"
            result.append(Figure(f"decoding.crossover.beam{beam}.items", at, "items", note=note))
    return result


def _sizes(figures: Named) -> list[int]:
    pattern = re.compile(r"decoding\.crossover\.items(\d+)\..+")
    return sorted({int(match[1]) for name in figures if (match := pattern.fullmatch(name))})


def times_table(figures: Named) -> Table:
    """Milliseconds of one request by size."""
    pattern = re.compile(r"decoding\.crossover\.items\d+\.(\w+)\.ms")
    methods = list(dict.fromkeys(match[1] for name in figures if (match := pattern.fullmatch(name))))
    rows = []
    for items in _sizes(figures):
        stem = f"decoding.crossover.items{items}"
        agreement = [
            figure.value
            for name, figure in figures.items()
            if name.startswith(f"{stem}.ann_ivfpq.agreement@")
        ]  # fmt: skip
        shown = f"{agreement[0]:.2f}" if agreement else "-"
        rows.append([f"{items:,}", *(cell(figures, f"{stem}.{method}.ms") for method in methods), shown])
    header = ["items", *methods, "ann_ivfpq finds"]
    return Table("ms of one request, one thread; the trunk is in all of them", header, rows)


def crossing_table(figures: Named) -> Table:
    """From how many items on nezha is the cheaper, by width."""
    pattern = re.compile(r"decoding\.crossover\.items\d+\.nezha_beam(\d+)\.ms")
    beams = sorted({int(match[1]) for name in figures if (match := pattern.fullmatch(name))})
    rows = []
    for beam in beams:
        found = figures.get(f"decoding.crossover.beam{beam}.items")
        rows.append(
            [
                f"nezha, beam {beam}",
                *(("-", "not between the measured sizes") if found is None else (_round(found), found.note)),
            ]
        )
    return Table("cheaper than flat", ["", "from items", "where"], rows)


def _round(figure: Figure) -> str:
    """To two digits."""
    return f"{float(f'{figure.value:.2g}'):,.0f}"


def memory_table(figures: Named) -> Table:
    """Bytes, seconds to build and milliseconds of one change by size."""
    rows = []
    for items in _sizes(figures):
        stem = f"decoding.crossover.items{items}"
        row = [f"{items:,}"]
        for method in _RIVALS:
            held = figures.get(f"{stem}.{method}.bytes")
            if held is None:
                row.append("-")
                continue
            built = cell(figures, f"{stem}.{method}.build_s", ".2g")
            update = cell(figures, f"{stem}.{method}.update_ms", ".2g")
            row.append(f"{held.value / _GIGA:.3g} / {built} / {update}")
        rows.append(row)
    header = ["items", *(f"{method}: GB / s to build / ms per change" for method in _RIVALS)]
    return Table("memory and change", header, rows)
