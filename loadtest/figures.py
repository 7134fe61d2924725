"""Runs and sweeps as named figures, `serving.<scenario>.<metric>`, in the form that docs/figures.md declares."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from loadtest.errors import SettingsError
from loadtest.running import CPU_LIMIT
from loadtest.sweep import DEFINITION

if TYPE_CHECKING:
    from loadtest.running import Run
    from loadtest.summary import Summary, Value
    from loadtest.sweep import Sweep

_SCENARIO: Final = re.compile(r"[a-z0-9_]{1,40}")


@dataclass(frozen=True, slots=True)
class Measured:
    """One number; the fields of a figure of docs/figures.

    Attributes:
        name: from the general to the particular.
        value: the number.
        unit: what it counts.
        low: lower end of the 95 % interval, where there is one.
        high: upper end.
        n: number of cases behind it.
        note: what a reader must know beside it.
    """

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    n: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures, and what could not be one.

    Attributes:
        measured: in the order they are shown.
        refused: name of a figure to the reason why it is not given.
        warnings: what makes the figures doubtful.
    """

    measured: list[Measured]
    refused: dict[str, str]
    warnings: list[str]

    def __add__(self, other: Figures) -> Figures:
        return Figures(
            self.measured + other.measured, {**self.refused, **other.refused}, self.warnings + other.warnings
        )


def run_figures(scenario: str, run: Run, summary: Summary) -> Figures:
    """All figures of one run.

    Raises:
        SettingsError: the scenario's name does not fit into a figure's.
    """
    stem, offered = _stem(scenario), summary.offered
    interval = "interval resamples the seconds of the window"
    values: list[tuple[str, Value, str]] = [
        ("goodput_rps", summary.goodput_rps, "requests/s"),
        ("goodput_share", summary.goodput_share, "share"),
        *((f"{name}_ms", value, "ms") for name, value in summary.latency_ms.items()),
    ]
    seen: list[tuple[str, Value, str]] = [
        *((f"from_send_{name}_ms", value, "ms") for name, value in summary.from_send_ms.items()),
        ("send_lag_p99_ms", summary.send_lag_ms, "ms"),
    ]
    figures = [
        Measured(f"{stem}.offered_rps", summary.offered_rps, "requests/s", n=offered),
        Measured(f"{stem}.answered_rps", summary.answered_rps, "requests/s", n=offered),
    ]
    refused = {f"{stem}.{name}": value.reason for name, value, _ in values + seen if value.value is None}
    for pairs, note in ((values, interval), (seen, "")):
        figures += [
            Measured(f"{stem}.{name}", of.value, unit, of.low, of.high, of.n or offered, note if of.low else "")
            for name, of, unit in pairs
            if of.value is not None
        ]
    figures += [
        Measured(f"{stem}.tier_{name}_share", share, "share", n=summary.named) for name, share in summary.tiers.items()
    ]
    figures += [
        Measured(f"{stem}.error_{kind}", count, "requests", n=offered) for kind, count in summary.errors.items()
    ]
    figures.append(Measured(f"{stem}.failed", sum(summary.errors.values()), "requests", n=offered))
    figures.append(
        Measured(f"{stem}.client_cpu_share", run.client_cpu, "cores", note="of the load generator's process")
    )
    return Figures(figures, refused, _warnings(scenario, run))


def sweep_figures(scenario: str, sweep: Sweep) -> Figures:
    """The knee.

    Raises:
        SettingsError: the scenario's name does not fit into a figure's.
    """
    name = f"{_stem(scenario)}.rps"
    warnings = [warning for step in sweep.steps for warning in _warnings(f"{step.rate:g} requests/s", step.run)]
    if sweep.knee is None:
        return Figures([], {name: sweep.reason}, warnings)
    note = "; ".join(part for part in (DEFINITION, sweep.reason) if part)
    return Figures([Measured(name, sweep.knee, "requests/s", n=len(sweep.steps), note=note)], {}, warnings)


def steps_of(sweep: Sweep) -> list[dict[str, Any]]:
    """Every rate that was tried, JSON-ready."""
    return [
        {
            "rate": step.rate,
            "held": step.held,
            "p99_ms": step.summary.latency_ms["p99"].value,
            "goodput_share": step.summary.goodput_share.value,
            "errors": step.summary.errors,
            "client_cpu_share": step.run.client_cpu,
        }
        for step in sweep.steps
    ]


def _warnings(what: str, run: Run) -> list[str]:
    found = []
    if run.client_bound:
        found.append(
            f"{what}: the client used {run.client_cpu:.0%} of a core, more than {CPU_LIMIT:.0%}: "
            "part of these latencies is its own"
        )
    if run.warmup_errors:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(run.warmup_errors.items()))
        found.append(f"{what}: errors in the warm-up, which is not measured: {kinds}")
    return found


def _stem(scenario: str) -> str:
    if not _SCENARIO.fullmatch(scenario):
        raise SettingsError(
            "does not fit into the name of a figure", field="scenario", value=scenario,
            remedy="use small letters, digits and _",
        )  # fmt: skip
    return f"serving.{scenario}"
