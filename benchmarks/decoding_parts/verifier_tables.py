"""Tables of the verifier at scale."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from benchmarks.decoding_parts.peers_tables import cell
from benchmarks.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.figures import Figure

    Named = dict[str, Figure]


def structures_table(figures: Named) -> Table:
    """Memory, building, masks and changes of every structure."""
    columns = ("bytes_per_item", "build_s", "decode_ms", "mask_ms", "share", "changes_per_s", "single_changes_per_s")
    header = [
        "items, structure",
        "bytes per item",
        "build s",
        "decode ms",
        "in masks ms",
        "share",
        "changes/s",
        "one by one",
    ]
    return _table(figures, r"decoding\.verifier\.(?P<what>\w+)\.items(?P<items>\d+)", columns, header)


def sets_table(figures: Named) -> Table:
    """What named sets and an arbitrary set of one request cost."""
    columns = ("bitset_ms", "intersection_ms", "intersection_bytes_per_item")
    header = ["items", "arbitrary set ms", "new intersection ms", "bytes per item"]
    return _table(figures, r"decoding\.verifier\.items(?P<items>\d+)", columns, header)


def _table(figures: Named, stem: str, columns: Sequence[str], header: Sequence[str]) -> Table:
    """One row for every stem whose first column was measured."""
    pattern = re.compile(rf"({stem})\.{columns[0]}")
    rows = []
    for name in figures:
        if match := pattern.fullmatch(name):
            named = match.groupdict()
            label = ", ".join([f"{int(named['items']):,}", *([named["what"]] if "what" in named else [])])
            rows.append([label, *(cell(figures, f"{match[1]}.{column}") for column in columns)])
    return Table("verifier", header, rows)
