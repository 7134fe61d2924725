"""The knee: the highest rate that a server holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from loadtest.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from loadtest.running import Run
    from loadtest.summary import Summary

GOODPUT_SHARE: Final = 0.99  # of the offered requests, answered well within the deadline
DEFINITION: Final = (
    "the highest tried rate at which the 99th percentile from the intended time stays within the deadline "
    f"and at least {GOODPUT_SHARE:.0%} of the offered requests are answered well within it"
)
_MOST_STEPS: Final = 40


@dataclass(frozen=True, slots=True)
class Step:
    """One rate that was tried.

    Attributes:
        rate: offered per second.
        held: whether the server held it, by the definition.
        run: raw samples.
        summary: of them.
    """

    rate: float
    held: bool
    run: Run
    summary: Summary


@dataclass(frozen=True, slots=True)
class Sweep:
    """All rates tried.

    Attributes:
        knee: None where not even the lowest rate was held.
        steps: in the order of trying.
        reason: what to know about the knee; empty where there is nothing.
    """

    knee: float | None
    steps: list[Step]
    reason: str = ""


def held(summary: Summary, deadline: float) -> bool:
    """Whether a rate was held: see `DEFINITION`; `deadline` in seconds."""
    p99, share = summary.latency_ms["p99"].value, summary.goodput_share.value
    return p99 is not None and share is not None and p99 <= deadline * 1000 and share >= GOODPUT_SHARE


async def find_knee(
    measure: Callable[[float], Awaitable[Step]], *, start: float, lowest: float, highest: float, precision: float
) -> Sweep:
    """Double the rate until it is not held (or halve it until it is), then bisect.

    Each rate is tried once. A step that the client was too busy for ends the search: what lies above cannot be
    told, and the knee is a lower bound.

    Args:
        measure: tries a rate.
        start: first rate.
        lowest: below it nothing is tried.
        highest: above it nothing is tried.
        precision: bisect until the first rate that is not held is at most 1 + precision times the last one that is.

    Raises:
        SettingsError: the bounds contradict each other.
    """
    if not 0 < lowest <= start <= highest:
        raise SettingsError(
            "the rates must be positive and in this order: lowest, start, highest",
            field="start", value=(lowest, start, highest), remedy="set sweep.lowest, sweep.start and sweep.highest",
        )  # fmt: skip
    if precision <= 0:
        raise SettingsError("must be positive", field="precision", value=precision, remedy="0.05 is usual")
    steps: list[Step] = []

    async def tried(rate: float) -> Step:
        step = await measure(rate)
        steps.append(step)
        return step

    good, bad, rate, reason = 0.0, 0.0, start, ""
    while len(steps) < _MOST_STEPS:
        step = await tried(rate)
        good, bad = (rate, bad) if step.held else (good, rate)
        if reason := _busy(step):
            break
        if good and (bad or good >= highest):
            break
        if not good and bad <= lowest:
            return Sweep(None, steps, f"not even {bad:g} requests/s were held")
        rate = min(highest, good * 2) if good else max(lowest, bad / 2)
    while not reason and good and bad > good * (1 + precision) and len(steps) < _MOST_STEPS:
        rate = (good + bad) / 2
        step = await tried(rate)
        good, bad = (rate, bad) if step.held else (good, rate)
        reason = _busy(step)
    if good and not bad and not reason:
        reason = "the highest rate of the settings was held"
    return Sweep(good or None, steps, reason)


def _busy(step: Step) -> str:
    """Why nothing above a step can be told; empty where its client kept up."""
    cpu = step.run.client_cpu
    return f"at {step.rate:g} requests/s the client used {cpu:.0%} of a core" if step.run.client_bound else ""
