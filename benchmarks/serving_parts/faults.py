"""The fault matrix: half of what the service holds, and something breaks in the middle of it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.figures import Figure
from benchmarks.serving import Arm
from benchmarks.serving_parts.fault_list import FAULTS, ground
from benchmarks.serving_parts.knee import seconds_for, sweep
from benchmarks.serving_parts.traffic import Driven, driven_while, figures_of, load_of
from loadtest.running import run_in_loop
from loadtest.samples import OK
from recsys.errors import ConfigError

if TYPE_CHECKING:
    from benchmarks.serving import Bench
    from benchmarks.serving_parts.fault_list import Fault, Ground

BEGINS: Final = 0.25  # of the window
ENDS: Final = 0.7
_WHOLE: Final = 0.9  # of the share before: the full tier is back
_STEP: Final = 0.1  # seconds between two tries to see it back
_KEPT: Final = ("p50_ms", "p99_ms", "p999_ms", "offered_rps", "goodput_share", "failed", "client_cpu_share")


@dataclass(frozen=True, slots=True)
class Lasted:
    """When a fault held.

    Attributes:
        begun: seconds of the window, as the others.
        sought: it was to end from here on.
        ended: what was taken is there again.
        effect: see `Fault`; None where nothing is asked.
    """

    begun: float
    sought: float
    ended: float
    effect: float | None = None


def measure(bench: Bench) -> list[Figure]:
    """Every fault that the settings name.

    Raises:
        ConfigError: a fault has no such name.
    """
    settings = bench.settings.faults
    unknown = [name for name in settings.names if name not in FAULTS]
    if unknown:
        raise ConfigError(
            "no such fault", field="faults.names", value=unknown[0], remedy=f"some of {', '.join(FAULTS)}"
        )
    figures: list[Figure] = []
    knee = None if settings.rate else float(sweep(bench).values["knee"])
    for name in settings.names or FAULTS:
        fault = FAULTS[name]
        share = settings.vllm_share if fault.where == "vllm" else settings.share
        rate = settings.rate or share * (knee or 0.0)
        figures += bench.arm("faults", name, lambda f=fault, r=rate: _one(bench, f, r), rate=rate).figures  # type: ignore[misc]
    return figures


def _one(bench: Bench, fault: Fault, rate: float) -> Arm:
    settings = bench.settings.faults
    seconds = seconds_for(rate, settings.seconds, settings.least)
    with ground(bench, fault) as at:
        of, lasted = run_in_loop(_through(bench, fault, at, rate, seconds))
    return told_of(fault, of, lasted, rate)


async def _through(bench: Bench, fault: Fault, at: Ground, rate: float, seconds: float) -> tuple[Driven, Lasted]:
    load = load_of(bench.settings, rate, seconds, bench.settings.faults.warmup)

    async def broken(opens: float) -> Lasted:
        await asyncio.sleep(opens + BEGINS * seconds - time.monotonic())
        begun = time.monotonic()
        await fault.begin(at)
        await asyncio.sleep(opens + ENDS * seconds - time.monotonic())
        effect = None if fault.effect is None else await asyncio.to_thread(fault.effect, at)
        sought = time.monotonic()
        await fault.end(at)
        return Lasted(begun - opens, sought - opens, time.monotonic() - opens, effect)

    return await driven_while(at.on.target, load, at.on.requests(), at.on.judge(), broken)


def told_of(fault: Fault, of: Driven, lasted: Lasted, rate: float) -> Arm:
    """What a run through a fault comes to."""
    stem = f"serving.fault.{fault.name}"
    arm = figures_of(stem, of)
    kept = {f"{stem}.{name}" for name in _KEPT}
    refused = {name: reason for name, reason in arm.refused.items() if name in kept}
    how = (
        f"{rate:.4g} requests/s for {of.run.load.seconds:.0f} s, broken from {lasted.begun:.1f} to {lasted.ended:.1f} s"
    )
    note = "; ".join(part for part in (how, fault.note) if part)
    wrong = sum(count for kind, count in of.summary.errors.items() if kind.startswith("invalid_"))
    figures = [
        *(figure for figure in arm.figures if figure.name in kept or figure.name.startswith(f"{stem}.error_")),
        Figure(f"{stem}.invalid", wrong, "requests", n=of.summary.offered, note=note),
        *_tiers(fault, stem, of, lasted),
        Figure(f"{stem}.restart_s", lasted.ended - lasted.sought, "s", note="that ending the fault took"),
    ]
    if lasted.effect is not None:
        note = "exposures dropped, or bundles refused: whether the fault took hold"
        figures.append(Figure(f"{stem}.effect", lasted.effect, "cases", note=note))
    over = lasted.begun if fault.instant else lasted.ended
    back = recovery(of, lasted.begun, over)
    if back is None:
        refused[f"{stem}.recovery_s"] = "the full tier was not back before the window ended"
    else:
        note = "from the fault's end to the first second in which the full tier answers as before"
        figures.append(Figure(f"{stem}.recovery_s", back, "s", note=note))
    return Arm(figures, refused=refused, warnings=arm.warnings)


def _tiers(fault: Fault, stem: str, of: Driven, lasted: Lasted) -> list[Figure]:
    """Who answered while the fault lasted."""
    samples = of.run.samples
    good = samples.outcome == samples.outcomes.index(OK)
    during = good & (samples.at >= lasted.begun) & (samples.at < lasted.ended)
    answered = int(during.sum())
    if not answered:
        return []
    counts = {name: int((during & (samples.tier == n)).sum()) for n, name in enumerate(samples.tiers) if name}
    right = sum(count for name, count in counts.items() if name in fault.tiers) / answered
    note = f"of the good answers to requests during the fault, those by {', '.join(sorted(fault.tiers))}"
    return [
        Figure(f"{stem}.tier_share", right, "share", n=answered, note=note),
        *(
            Figure(f"{stem}.tier_{name}_share", count / answered, "share", n=answered, note="during the fault")
            for name, count in counts.items()
            if count
        ),
    ]


def recovery(of: Driven, begun: float, over: float) -> float | None:
    """Seconds until the begin of the first second in which the full tier answers as before a fault.

    Args:
        of: the run.
        begun: when the fault began, in seconds of the window; the share before is that of the window until then.
        over: from here on.

    Returns:
        None: there is no such second in the window.
    """
    at, full = of.run.samples.at, of.full
    before = at < begun
    usual = float(full[before].mean()) if before.any() else 1.0
    for begin in np.arange(over, of.run.load.seconds - 1.0, _STEP):
        within = (at >= begin) & (at < begin + 1.0)
        if within.any() and float(full[within].mean()) >= _WHOLE * usual:
            return float(begin - over)
    return None
