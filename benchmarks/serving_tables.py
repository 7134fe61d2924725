"""Tables of `windfire bench serving`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks.serving_parts.fault_list import FAULTS
from benchmarks.serving_parts.overhead import TITLES
from benchmarks.table import ABSENT, Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.figures import Figure, Report

    Named = dict[str, Figure]

_LATENCIES: Final = ("p50_ms", "p99_ms", "p999_ms")
UNMEASURED: Final = "not measured yet"


def _cell(figures: Named, name: str, form: str = ".3g") -> str:
    figure = figures.get(name)
    return ABSENT if figure is None else f"{figure.value:{form}}"


def _or_unmeasured(title: str, header: list[str], rows: list[list[str]]) -> Table:
    return Table(title, header, rows or [[UNMEASURED, *[ABSENT] * (len(header) - 1)]])


def loads_table(figures: Named) -> Table:
    """The knee, and what is offered around it."""
    names = [name.split(".")[1] for name in figures if name.endswith(".offered_rps") and name.count(".") == 2]
    loads = [name for name in dict.fromkeys(names) if name.startswith("load") or name == "overload"]
    rows = []
    if "serving.knee.rps" in figures:
        rows.append(["knee", _cell(figures, "serving.knee.rps", ".4g"), *[ABSENT] * 6,
                     _cell(figures, "serving.knee.client_cpu_share", ".0%")])  # fmt: skip
    for load in loads:
        stem = f"serving.{load}"
        title = "overload" if load == "overload" else f"{load.removeprefix('load')} % of the knee"
        cells = [_cell(figures, f"{stem}.offered_rps", ".4g"), *(_cell(figures, f"{stem}.{q}") for q in _LATENCIES)]
        shares = [_cell(figures, f"{stem}.{name}", ".3f") for name in ("goodput_share", "tier_nezha_share")]
        rows.append([title, *cells, *shares, _cell(figures, f"{stem}.failed", ".0f"),
                     _cell(figures, f"{stem}.client_cpu_share", ".0%")])  # fmt: skip
    header = [
        "load", "requests/s", "p50 ms", "p99 ms", "p99.9 ms", "goodput share", "nezha share", "failed", "client CPU",
    ]  # fmt: skip
    return _or_unmeasured("what the service holds", header, rows)


def overhead_table(figures: Named) -> Table:
    """CPU per request around the decode."""
    lines = [
        ("cpu_ms", "**around the decode, all together**"),
        ("echo_cpu_ms", "the same request against a bare FastAPI echo"),
        ("over_echo_cpu_ms", "difference"),
        ("decode_cpu_ms", "decode"),
        *((f"{stage}_cpu_ms", f"of it: {title}") for stage, title in TITLES.items()),
    ]
    stem = "serving.overhead"
    rows = [[title, _cell(figures, f"{stem}.{name}")] for name, title in lines if f"{stem}.{name}" in figures]
    return _or_unmeasured("CPU of one request", ["part", "CPU ms"], rows)


def faults_table(figures: Named) -> Table:
    """One row per fault."""
    rows = []
    for fault in FAULTS.values():
        stem = f"serving.fault.{fault.name}"
        if f"{stem}.failed" in figures:
            requests = figures[f"{stem}.failed"].n
            whole = [_cell(figures, f"{stem}.{name}", ".0f") for name in ("failed", "invalid")]
            times = [_cell(figures, f"{stem}.{name}") for name in ("p99_ms", "p999_ms", "recovery_s")]
            share = _cell(figures, f"{stem}.tier_share", ".4f")
            rows.append([fault.title, f"{requests or 0:,}", *whole, *times[:2], share, times[2]])
    header = ["fault", "requests", "failed", "invalid", "p99 ms", "p99.9 ms", "right tier", "recovery s"]
    return _or_unmeasured("faults at a share of the knee", header, rows)


def _rows_of(stem: str, lines: dict[str, str]) -> Callable[[Named], list[list[str]]]:
    def rows(figures: Named) -> list[list[str]]:
        return [
            [title, _cell(figures, f"{stem}.{name}", ".4g")]
            for name, title in lines.items()
            if f"{stem}.{name}" in figures
        ]

    return rows


_SWAP: Final = _rows_of(
    "serving.swap",
    {
        "swaps": "bundle swaps and rollbacks",
        "versions": "versions that answered",
        "requests": "requests meanwhile",
        "failed": "failed requests",
        "mixed": "answers that mix versions",
        "p99_ms": "p99 ms",
    },
)
_RESTART: Final = _rows_of(
    "serving.restart",
    {"restarts": "workers replaced (SIGTERM)", "requests": "requests meanwhile", "failed": "failed requests"},
)
_CHECKER: Final = _rows_of(
    "serving.checker",
    {
        "answers": "answers over HTTP",
        "in_process": "answers in process",
        "changes": "changes of items",
        "changes_per_s": "changes per second",
        "ineligible": "ineligible or expired items",
        "behind": "answers that did not know an earlier change",
        "failed": "failed requests",
        "restarts": "workers replaced",
    },
)
_SOAK: Final = _rows_of(
    "serving.soak",
    {
        "memory_slope": "memory, MiB per hour",
        "p50_slope": "median latency, ms per hour",
        "p99_slope": "p99 latency, ms per hour",
        "failed": "failed requests",
        "p99_ms": "p99 ms",
    },
)


def swap_table(figures: Named) -> Table:
    """Bundles that change under load."""
    return _or_unmeasured("swaps under load", ["count of", ""], [*_SWAP(figures), *_RESTART(figures)])


def checker_table(figures: Named) -> Table:
    """Items that come and go under load."""
    return _or_unmeasured("items that come and go", ["count of", ""], _CHECKER(figures))


def memory_table(figures: Named) -> Table:
    """Memory of front-ends over a large catalogue."""
    rows = []
    for arm, title in (("socket", "one engine process"), ("in_process", "a model in each front-end")):
        stem = f"serving.memory.{arm}"
        if f"{stem}.front_ends_mib" in figures:
            cells = (_cell(figures, f"{stem}.{name}_mib", ".0f") for name in ("front_ends", "largest", "engine", "all"))
            rows.append([title, *cells])
    header = ["front-ends with", "front-ends MiB", "largest MiB", "engine MiB", "all MiB"]
    return _or_unmeasured("memory (PSS)", header, rows)


def soak_table(figures: Named) -> Table:
    """Slopes of a long run."""
    return _or_unmeasured("soak", ["slope of", ""], _SOAK(figures))


TABLES: Final[dict[str, Callable[[Named], Table]]] = {
    "": loads_table,
    "overhead": overhead_table,
    "faults": faults_table,
    "swap": swap_table,
    "checker": checker_table,
    "memory": memory_table,
    "soak": soak_table,
}


def is_mark(rest: str) -> bool:
    """Whether a table has the mark that ends so."""
    return rest in TABLES


def marked_table(rest: str, report: Report) -> Table:
    """Of the mark `serving` or `serving-faults`."""
    return TABLES[rest]({figure.name: figure for figure in report.figures})
