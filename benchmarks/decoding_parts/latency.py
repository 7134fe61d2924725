"""The part `latency`: one request by every decoder of ours (`benchmarks.decoding`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks.decoding import bench
from benchmarks.decoding_settings import CONFIG, DecodingSettings
from benchmarks.tables import decoding_table, engines_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.decoding_parts import Request
    from benchmarks.figures import Figure, Report
    from benchmarks.table import Table

TABLES: Final[dict[str, Callable[[dict[str, Figure]], Table]]] = {"": decoding_table, "engines": engines_table}


def measure(request: Request) -> Report:
    """See `benchmarks.decoding.bench`."""
    settings = DecodingSettings.load(request.config or CONFIG, quick=request.quick)
    return bench(settings, request.command, say=request.say)
