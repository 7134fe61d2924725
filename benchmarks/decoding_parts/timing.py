"""Times of methods that take turns, and what is reported of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.figures import Figure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    Times = npt.NDArray[np.float64]

_DRAWS: Final = 1000  # of the bootstrap over rounds


def take_turns(
    calls: Mapping[str, Callable[[int], object]],
    rounds: Mapping[str, int],
    rng: np.random.Generator,
    *,
    warm_up: int = 1,
) -> dict[str, Times]:
    """Milliseconds of every method in every round, NaN where it was left out, in a drawn order inside each round.

    Args:
        calls: by method; each is given a number, which chooses its input.
        rounds: times each method is measured, spread over the rounds of the most measured one.
        rng: draws the order.
        warm_up: calls that are not timed, before all rounds and again before every timed one; a server runs one model,
            whose weights and code are in the processor's caches. 0 = none.

    Returns:
        (R,) per method, R = the largest of `rounds`.
    """
    names, total = list(calls), max(rounds.values())
    times = {name: np.full(total, np.nan) for name in names}
    for name in names:
        for number in range(warm_up):
            calls[name](number)
    for turn in range(total):
        for place in rng.permutation(len(names)):
            name = names[place]
            if (turn * rounds[name]) // total == ((turn - 1) * rounds[name]) // total:
                continue
            for number in range(warm_up):
                calls[name](turn + 1 + number)
            began = time.perf_counter_ns()
            calls[name](turn)
            times[name][turn] = (time.perf_counter_ns() - began) / 1e6
    return times


def middle(name: str, values: Times, unit: str, rng: np.random.Generator, note: str = "") -> Figure:
    """The median of what was measured, with its interval over the rounds."""
    measured = values[~np.isnan(values)]
    draws = np.median(rng.choice(measured, size=(_DRAWS, len(measured))), axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    note = note or ("median over rounds" if unit == "ms" else "median of the ratios inside rounds")
    return Figure(name, float(np.median(measured)), unit, float(low), float(high), len(measured), note)


def percentiles(stem: str, values: Times) -> list[Figure]:
    """The 95th and the 99th percentile."""
    measured = values[~np.isnan(values)]
    return [
        Figure(f"{stem}.p{share}_ms", float(np.percentile(measured, share)), "ms", n=len(measured), note="over rounds")
        for share in (95, 99)
    ]


def ratio(name: str, values: Times, other: Times, rng: np.random.Generator) -> Figure:
    """The median of the ratios inside the rounds that have both."""
    return middle(name, values / other, "ratio", rng)
