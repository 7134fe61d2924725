"""A long run at half of what the service holds: do memory and latency stay where they are?"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.figures import Figure
from benchmarks.serving import Arm
from benchmarks.serving_parts.knee import sweep
from benchmarks.serving_parts.memory import all_mib
from benchmarks.serving_parts.rig import rig
from benchmarks.serving_parts.traffic import driven_while, figures_of, load_of
from loadtest.running import run_in_loop
from loadtest.samples import OK

if TYPE_CHECKING:
    import numpy.typing as npt

    from benchmarks.serving import Bench
    from benchmarks.serving_parts.traffic import Driven

    Floats = npt.NDArray[np.float64]

_WARMUP: Final = 5.0
_HOUR: Final = 3_600.0
_DRAWS: Final = 2_000


def measure(bench: Bench) -> list[Figure]:
    """One run."""
    settings = bench.settings.soak
    rate = settings.rate or settings.share * float(sweep(bench).values["knee"])
    return bench.arm("soak", "soak", lambda: _soaked(bench, rate), rate=rate).figures


def _soaked(bench: Bench, rate: float) -> Arm:
    settings = bench.settings.soak
    load = load_of(bench.settings, rate, settings.seconds, _WARMUP)
    with rig(bench.settings, bench.registry(), data=bench.data) as on:

        async def watched(opens: float) -> list[tuple[float, float]]:
            seen = []
            for turn in range(int(settings.seconds / settings.window)):
                await asyncio.sleep(max(0.0, opens + (turn + 1) * settings.window - time.monotonic()))
                seen.append((time.monotonic() - opens, await asyncio.to_thread(all_mib, on)))
            return seen

        of, memory = run_in_loop(driven_while(on.target, load, on.requests(), on.judge(), watched))
    arm, rng = figures_of("serving.soak", of), np.random.default_rng(bench.settings.seed)
    times, mib = (np.array(column) for column in zip(*memory, strict=True))
    figures = [*arm.figures, _slope_figure("memory", times, mib, "MiB/hour", rng)]
    for name, quantile in (("p50", 0.5), ("p99", 0.99)):
        figures.append(_slope_figure(name, *windows(of, settings.window, quantile), "ms/hour", rng))
    values = {"memory_mib": [round(value, 2) for value in mib.tolist()]}
    return Arm(figures, values, arm.refused, arm.warnings)


def windows(of: Driven, seconds: float, quantile: float) -> tuple[Floats, Floats]:
    """Middles of windows in seconds, and a quantile of their good answers' milliseconds; empty ones are left out."""
    samples = of.run.samples
    good = samples.outcome == samples.outcomes.index(OK)
    place = (samples.at[good] / seconds).astype(np.int64)
    latency = samples.latency[good] * 1000
    found = np.unique(place[place < int(samples.seconds / seconds)])
    return (found + 0.5) * seconds, np.array([np.quantile(latency[place == one], quantile) for one in found])


def slope(times: Floats, values: Floats, rng: np.random.Generator) -> tuple[float, float, float]:
    """Least squares, per hour, and its 95 % interval over resampled windows; NaN with fewer than three."""
    if len(times) < 3:
        return (float("nan"),) * 3
    fit: Any = np.polynomial.polynomial.polyfit
    own = float(fit(times, values, 1)[1])
    drawn = []
    for _ in range(_DRAWS):
        taken = rng.integers(len(times), size=len(times))
        if len(np.unique(times[taken])) > 1:
            drawn.append(float(fit(times[taken], values[taken], 1)[1]))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return own * _HOUR, float(low) * _HOUR, float(high) * _HOUR


def _slope_figure(name: str, times: Floats, values: Floats, unit: str, rng: np.random.Generator) -> Figure:
    own, low, high = slope(times, values, rng)
    note = f"by least squares over {len(times)} windows, whose resampling gives the interval"
    return Figure(f"serving.soak.{name}_slope", own, unit, low, high, len(times), note)
