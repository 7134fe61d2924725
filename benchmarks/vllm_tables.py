"""The table of `windfire bench vllm`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from benchmarks.table import Table

if TYPE_CHECKING:
    from benchmarks.figures import Figure, Report

    Named = dict[str, Figure]


def is_mark(rest: str) -> bool:
    """Whether a table has the mark that ends so."""
    return not rest


def marked_table(rest: str, report: Report) -> Table:
    """Of the mark `vllm`."""
    del rest
    return vllm_table({figure.name: figure for figure in report.figures})


def vllm_table(figures: Named) -> Table:
    """NEZHA inside vLLM beside vLLM's own beam search."""
    columns = {
        "own engine, ms": "nezha.ms", "plug-in, ms": "vllm_nezha.ms", "vLLM's beam, ms": "vllm_beam.ms",
        "beam / plug-in": "vllm_beam.over_vllm_nezha", "plug-in invalid": "vllm_nezha.invalid",
        "beam invalid, unconstrained": "vllm_beam.invalid", "same items as own": "vllm_nezha.same_items",
        "largest score difference": "vllm_nezha.score_difference",
    }  # fmt: skip
    pattern = re.compile(r"decoding\.vllm\.beam(\d+)\.nezha\.ms")
    widths = [match[1] for name in figures if (match := pattern.fullmatch(name))]
    rows = [
        [width, *(f"{figures[f'decoding.vllm.beam{width}.{metric}'].value:.3g}" for metric in columns.values())]
        for width in widths
    ]
    return Table("one request, on the CPU", ["width", *columns], rows)
