"""Does the open loop see a server that stands still? A stub is frozen, and the tail must show how long."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from itertools import repeat
from typing import TYPE_CHECKING, Final

from loadtest.closed_loop import run_closed
from loadtest.errors import SettingsError
from loadtest.open_loop import run_open
from loadtest.running import Load, Run, run_in_loop, together
from loadtest.settings import SweepSettings
from loadtest.stub import Stub
from loadtest.summary import Summary, summarize
from loadtest.sweep import Step, Sweep, find_knee, held
from loadtest.target import Target

if TYPE_CHECKING:
    from collections.abc import Callable

FROZEN_SHARE: Final = 0.1  # of the window
_BEGINS: Final = 1 / 3  # of the window: when the stub is frozen
# Of the freeze. At half the knee the slowest 1 % are the first 10 % of those that come during the freeze, of whom the
# last still waits 95 % of it at a server that then works off its queue; the rest is room for the machine.
BOUNDS: Final = (5.2 / 6.0, 6.2 / 6.0)
_MISSED: Final = 0.25  # of the freeze: a 99th percentile below it has missed the freeze
_USERS: Final = 16
_USERS_SHARE: Final = 0.003  # of the requests: each user has one answer that shows the freeze
_CONNECTIONS: Final = 64
# Of the requests: half of the slowest 1 % must wait for a connection, else latency from due and from sent are alike.
_CONNECTIONS_SHARE: Final = 0.005
_STUB_SECONDS: Final = 0.002
_TRIES: Final = SweepSettings(start=100.0, lowest=10.0, highest=2000.0, seconds=3.0, warmup=0.5, pause=0.5)


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What it showed.

    Attributes:
        freeze: seconds that the stubs stood still, at least and at most: a busy machine holds up the signals, too.
        knee: requests per second of the stub; the load was half of it.
        sweep: that found the knee; None where it was given.
        open_loop: run through the freeze.
        open_summary: of it.
        closed_loop: the same requests through the same freeze, each behind the answer to the one before.
        closed_summary: of it.
    """

    freeze: tuple[float, float]
    knee: float
    sweep: Sweep | None
    open_loop: Run
    open_summary: Summary
    closed_loop: Run
    closed_summary: Summary

    @property
    def bounds_ms(self) -> tuple[float, float]:
        """Between these the open loop's 99th percentile must lie."""
        return BOUNDS[0] * self.freeze[0] * 1000, BOUNDS[1] * self.freeze[1] * 1000

    @property
    def failures(self) -> list[str]:
        """What did not come out as it must; empty = passed."""
        low, high = self.bounds_ms
        seen, missed = self.open_summary.latency_ms["p99"].value, self.closed_summary.from_send_ms["p99"].value
        found = []
        if seen is None or not low <= seen <= high:
            found.append(f"open loop: p99 is {_shown(seen)}, it must lie between {low:.0f} and {high:.0f} ms")
        limit = _MISSED * self.freeze[0] * 1000
        if missed is None or missed >= limit:
            found.append(f"closed loop: p99 is {_shown(missed)}; below {limit:.0f} ms it would have missed the freeze")
        for name, summary in (("open", self.open_summary), ("closed", self.closed_summary)):
            if summary.errors:
                found.append(f"{name} loop: errors {summary.errors}")
        return found


def self_test(
    seconds: float = 60.0,
    *,
    knee: float | None = None,
    service: float = _STUB_SECONDS,
    users: int | None = None,
    seed: int = 1,
    say: Callable[[str], None] = lambda text: None,  # noqa: ARG005 - says nothing
) -> SelfTest:
    """Load a stub at half its knee and freeze it for a tenth of the time; open and closed loop side by side.

    Args:
        seconds: measured window; 60 with a freeze of 6 is the classic form.
        knee: of the stub, where it is known; None searches for it first.
        service: seconds that the stub takes per request.
        users: of the closed loop; None: 16, or so few that their answers during the freeze are well below 1 %.
        seed: of arrivals.
        say: is told of the progress.

    Raises:
        SettingsError: the window is too short, or no knee was found.
    """
    if seconds < 3:
        raise SettingsError("too short", field="seconds", value=seconds, remedy="give 6 or more")
    sweep = None
    if knee is None:
        say("searching for the stub's knee")
        with Stub(service) as stub:
            sweep = run_in_loop(_search(Target.parse(stub.url), seed))
        if sweep.knee is None:
            raise SettingsError(
                "no knee", field="knee", value=sweep.reason, remedy="try on a machine that is less busy"
            )
        knee = sweep.knee
    say(f"knee {knee:.4g} requests/s; {seconds:g} s at half of it, frozen for {seconds * FROZEN_SHARE:g} s")
    requests = knee / 2 * seconds
    few = users or max(1, min(_USERS, int(requests * _USERS_SHARE)))
    load = Load(
        rate=knee / 2, seconds=seconds, warmup=min(2.0, seconds / 10), deadline=0.1, timeout=seconds, seed=seed,
        connections=max(few, min(_CONNECTIONS, int(requests * _CONNECTIONS_SHARE))),
    )  # fmt: skip
    with Stub(service) as one, Stub(service) as other:
        open_loop, closed_loop, freeze = run_in_loop(_both(one, other, load, few))
    return SelfTest(freeze, knee, sweep, open_loop, summarize(open_loop), closed_loop, summarize(closed_loop))


async def _both(one: Stub, other: Stub, load: Load, users: int) -> tuple[Run, Run, tuple[float, float]]:
    """Each loop has a stub of its own; both are frozen at the same time."""

    async def freeze() -> tuple[float, float]:
        await asyncio.sleep(load.warmup + load.seconds * _BEGINS)
        first = time.monotonic()
        one.freeze()
        other.freeze()
        last = time.monotonic()
        try:
            await asyncio.sleep(first + load.seconds * FROZEN_SHARE - time.monotonic())
        finally:
            thawed = time.monotonic()
            one.thaw()
            other.thaw()
        return thawed - last, time.monotonic() - first

    targets = [Target.parse(stub.url) for stub in (one, other)]
    asked = [repeat(target.request("recommend", "/v1/recommend", b'{"n":20}')) for target in targets]
    freezing = asyncio.create_task(freeze())
    opened, closed = await together(
        [run_open(targets[0], load, asked[0]), run_closed(targets[1], load, asked[1], users)]
    )
    return opened, closed, await freezing


async def _search(target: Target, seed: int) -> Sweep:
    requests = repeat(target.request("recommend", "/v1/recommend", b'{"n":20}'))
    base = Load(rate=1, seconds=_TRIES.seconds, warmup=_TRIES.warmup, deadline=0.1, timeout=5, seed=seed)

    async def measure(rate: float) -> Step:
        run = await run_open(target, replace(base, rate=rate), requests)
        await asyncio.sleep(_TRIES.pause)
        summary = summarize(run)
        return Step(rate, held(summary, run.load.deadline), run, summary)

    return await find_knee(
        measure, start=_TRIES.start, lowest=_TRIES.lowest, highest=_TRIES.highest, precision=_TRIES.precision
    )


def _shown(millis: float | None) -> str:
    return "not given" if millis is None else f"{millis:.0f} ms"
