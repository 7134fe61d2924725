"""How much the service holds: a sweep to the knee, latency at shares of it, and twice as much as it holds."""

from __future__ import annotations

import asyncio
import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Final

from benchmarks.figures import Figure
from benchmarks.serving import Arm
from benchmarks.serving_parts.rig import rig
from benchmarks.serving_parts.traffic import driven, figures_of, load_of
from loadtest.figures import steps_of, sweep_figures
from loadtest.running import run_in_loop
from loadtest.sweep import Step, Sweep, find_knee, held
from recsys.errors import UnavailableError

if TYPE_CHECKING:
    from benchmarks.serving import Bench
    from benchmarks.serving_parts.rig import Rig
    from benchmarks.serving_parts.traffic import Driven

_OVERLOAD_SHARE: Final = 0.9  # of the peak; the aim


def measure(bench: Bench) -> list[Figure]:
    """The sweep, every load, and the overload."""
    swept, settings = sweep(bench), bench.settings.knee
    figures = list(swept.figures)
    knee, peak = float(swept.values["knee"]), float(swept.values["peak"])
    for share in settings.loads:
        name = f"load{share * 100:.0f}"
        figures += bench.arm("knee", name, lambda s=share, n=name: _load(bench, n, knee * s), knee=knee).figures  # type: ignore[misc]
    figures += bench.arm("knee", "overload", lambda: _overload(bench, knee, peak), knee=knee).figures
    return figures


def sweep(bench: Bench) -> Arm:
    """The arm with the knee: `values` has `knee` and `peak`, the goodput of the best rate, in requests/s.

    Raises:
        UnavailableError: not even the lowest rate was held.
    """
    arm = bench.arm("knee", "sweep", lambda: _sweep(bench))
    if arm.values["knee"] is None:
        raise UnavailableError("there is no knee", field="knee.lowest", value=arm.values["reason"],
                               remedy="measure on a machine that is less busy, or lower knee.lowest")  # fmt: skip
    return arm


def _sweep(bench: Bench) -> Arm:
    settings = bench.settings.knee
    with rig(bench.settings, bench.registry(), data=bench.data) as on:
        judge = on.judge()

        async def tried(rate: float) -> Step:
            load = load_of(bench.settings, rate, max(settings.seconds, settings.least / rate), settings.warmup)
            of = await driven(on.target, load, on.requests(), judge)
            full = float(of.full.sum() / of.run.load.seconds)
            p99 = of.summary.latency_ms["p99"].value
            bench.say(f"  {rate:.4g} requests/s: p99 {p99 or float('nan'):.1f} ms, {full:.4g}/s of the full tier, "
                      f"client {of.run.client_cpu:.0%}")  # fmt: skip
            await asyncio.sleep(settings.pause)
            # a rate that is held by lesser answers is not held by the model
            whole = full >= 0.99 * of.summary.offered_rps
            return Step(rate, held(of.summary, bench.settings.deadline) and whole, of.run, of.summary)

        swept = run_in_loop(
            find_knee(tried, start=settings.start, lowest=settings.lowest, highest=settings.highest,
                      precision=settings.precision)
        )  # fmt: skip
    return _knee_arm(swept)


def _knee_arm(swept: Sweep) -> Arm:
    told = sweep_figures("knee", swept)
    peak = max(step.summary.goodput_rps.value or 0.0 for step in swept.steps)
    figures = [Figure(**asdict(measured)) for measured in told.measured]
    note = "the most good answers within the deadline of any rate that was tried"
    figures.append(Figure("serving.knee.peak_goodput_rps", peak, "requests/s", n=len(swept.steps), note=note))
    cpu = max(step.run.client_cpu for step in swept.steps if step.held or swept.knee is None)
    note = "of the load generator's process, at the rates that were held"
    figures.append(Figure("serving.knee.client_cpu_share", cpu, "cores", note=note))
    values = {"knee": swept.knee, "peak": peak, "reason": swept.reason, "steps": steps_of(swept)}
    return Arm(figures, values, told.refused, told.warnings)


def _load(bench: Bench, name: str, rate: float) -> Arm:
    settings = bench.settings.knee
    seconds = seconds_for(rate, settings.load_seconds, settings.load_least)
    with rig(bench.settings, bench.registry(), data=bench.data) as on:
        return figures_of(f"serving.{name}", sent(bench, on, rate, seconds, settings.warmup))


def _overload(bench: Bench, knee: float, peak: float) -> Arm:
    settings, rate = bench.settings.knee, knee * bench.settings.knee.overload
    seconds = seconds_for(rate, settings.load_seconds, settings.load_least)
    with rig(bench.settings, bench.registry(), data=bench.data) as on:
        of = sent(bench, on, rate, seconds, settings.warmup)
    arm, offered = figures_of("serving.overload", of), of.summary.offered
    name = "serving.overload.goodput_share"
    share = (of.summary.goodput_rps.value or 0.0) / peak
    in_time = of.full & (of.run.samples.latency <= bench.settings.deadline)
    times = f"at {settings.overload:g} times the knee"
    note = f"good answers within the deadline per second {times}, over the peak; the aim is {_OVERLOAD_SHARE} or more"
    full = f"the same of the full tier alone, {times}"
    figures = [
        *(figure for figure in arm.figures if figure.name != name),
        Figure(name, share, "share", n=offered, note=note),
        Figure("serving.overload.full_share", float(in_time.sum()) / seconds / peak, "share", n=offered, note=full),
    ]
    return replace(arm, figures=figures)


def sent(bench: Bench, on: Rig, rate: float, seconds: float, warmup: float) -> Driven:
    """One load on a rig."""
    load = load_of(bench.settings, rate, seconds, warmup)
    return run_in_loop(driven(on.target, load, on.requests(), on.judge()))


def seconds_for(rate: float, seconds: float, least: int) -> float:
    """A window that is long enough for so many requests of a Poisson stream, but for one stream in some thousands."""
    return max(seconds, (least + 4 * math.sqrt(least)) / rate)
