"""What a run comes to: percentiles from raw samples, goodput, shares and errors, with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from loadtest.samples import OK

if TYPE_CHECKING:
    import numpy.typing as npt

    from loadtest.running import Run
    from loadtest.samples import Samples

    Floats = npt.NDArray[np.float64]

QUANTILES: Final[dict[str, float]] = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "p999": 0.999}
FEWEST: Final[dict[str, int]] = {"p50": 20, "p95": 100, "p99": 200, "p999": 20_000}  # samples behind a percentile
_DRAWS: Final = 200
_INTERVAL: Final = (0.025, 0.975)
_ANSWERED: Final = ("http_", "invalid_")  # kinds of errors that came as an answer


@dataclass(frozen=True, slots=True)
class Value:
    """A number with its 95 % interval, which resamples the seconds of the window, or why there is none.

    Attributes:
        value: None where it is refused.
        low: lower end; None where the window has too few seconds.
        high: upper end.
        reason: why it is refused; empty where it is not.
        n: requests behind a percentile; None elsewhere: all that were offered.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""
    n: int | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """The measured window of one run.

    Attributes:
        offered: requests that were due in it.
        offered_rps: the same per second.
        answered_rps: good answers to the window's requests, whenever they came, per second of the window.
        goodput_rps: good answers within the deadline per second.
        goodput_share: these over all that were offered.
        latency_ms: name of a percentile to milliseconds from the intended time, over good answers and requests that
            were never answered, which count as endlessly late; refusals (http_503) are errors and not latencies.
        from_send_ms: the same from the actual sending, over good answers only: what a closed loop would report.
        send_lag_ms: 99th percentile of the time between intended and actual sending.
        tiers: served_by to its share of the good answers that name one.
        errors: kind to number.
        named: good answers that name a tier.
    """

    offered: int
    offered_rps: float
    answered_rps: float
    goodput_rps: Value
    goodput_share: Value
    latency_ms: dict[str, Value]
    from_send_ms: dict[str, Value]
    send_lag_ms: Value
    tiers: dict[str, float]
    errors: dict[str, int]
    named: int = 0


def quantile(values: Floats, q: float) -> float:
    """The smallest value that at least the share `q` of the values does not exceed; of a non-empty array."""
    rank = max(1, math.ceil(q * len(values) - 1e-9))  # .99 * 100 is a little more than 99
    return float(np.partition(values, rank - 1)[rank - 1])


def summarize(run: Run, seed: int = 1) -> Summary:
    """Reduce the samples of a run.

    Args:
        run: with at least one sample, or none.
        seed: of the intervals.
    """
    samples, deadline = run.samples, run.load.deadline
    good = samples.outcome == samples.outcomes.index(OK)
    answered = np.array([name == OK or name.startswith(_ANSWERED) for name in samples.outcomes])[samples.outcome]
    within = good & (samples.latency <= deadline)
    counted = good | ~answered
    late = np.where(answered, samples.latency, np.inf)[counted]
    draws = _draws(samples, np.random.default_rng(seed))
    second = _seconds_of(samples)
    lag = (samples.latency - samples.from_send)[~np.isnan(samples.from_send)]
    offered = samples.offered
    return Summary(
        offered=offered,
        offered_rps=offered / samples.seconds,
        answered_rps=int(good.sum()) / samples.seconds,
        goodput_rps=_rate(within, second, draws, samples.seconds),
        goodput_share=_share(within, second, draws),
        latency_ms=_percentiles(late, second[counted], draws),
        from_send_ms=_percentiles(samples.from_send[good], second[good], None),
        send_lag_ms=_percentiles(lag, second, None)["p99"],
        tiers=_tiers(samples, good),
        errors=_errors(samples),
        named=int((good & (samples.tier > 0)).sum()),
    )


def _seconds_of(samples: Samples) -> npt.NDArray[np.int64]:
    return np.minimum(samples.at, math.ceil(samples.seconds) - 1).astype(np.int64)


def _draws(samples: Samples, generator: np.random.Generator) -> npt.NDArray[np.int64] | None:
    """How often each second of the window is taken, [draws, seconds]; None where there are too few of them."""
    seconds = math.ceil(samples.seconds)
    if seconds < 2 or not samples.offered:
        return None
    return generator.multinomial(seconds, np.full(seconds, 1.0 / seconds), size=_DRAWS)


def _interval(values: Floats) -> tuple[float | None, float | None]:
    low, high = np.quantile(values, _INTERVAL, method="nearest")
    return (float(low), float(high)) if np.isfinite(high) else (float(low) if np.isfinite(low) else None, None)


def _percentiles(
    seconds: Floats, second: npt.NDArray[np.int64], draws: npt.NDArray[np.int64] | None
) -> dict[str, Value]:
    order = np.argsort(seconds)
    millis, owner = seconds[order] * 1000, second[order] if draws is not None else None
    values: dict[str, list[float]] = {name: [] for name in QUANTILES}
    for taken in draws if draws is not None else ():
        cumulated = np.cumsum(taken[owner])
        if len(cumulated) and cumulated[-1]:
            for name, q in QUANTILES.items():
                values[name].append(float(millis[np.searchsorted(cumulated, math.ceil(q * cumulated[-1] - 1e-9))]))
    return {name: _percentile(name, millis, np.array(values[name])) for name in QUANTILES}


def _percentile(name: str, millis: Floats, resampled: Floats) -> Value:
    if len(millis) < FEWEST[name]:
        return Value(None, reason=f"{len(millis)} samples, at least {FEWEST[name]:,} are needed")
    value = quantile(millis, QUANTILES[name])
    if not math.isfinite(value):
        return Value(None, reason="so many requests were never answered that it lies among them")
    low, high = _interval(resampled) if len(resampled) else (None, None)
    return Value(value, low, high, n=len(millis))


def _share(within: npt.NDArray[np.bool_], second: npt.NDArray[np.int64], draws: npt.NDArray[np.int64] | None) -> Value:
    if not len(within):
        return Value(None, reason="nothing was offered")
    if draws is None:
        return Value(float(within.mean()))
    seconds = draws.shape[1]
    offered = draws @ np.bincount(second, minlength=seconds)
    good = draws @ np.bincount(second[within], minlength=seconds)
    return Value(float(within.mean()), *_interval(good[offered > 0] / offered[offered > 0]))


def _rate(
    within: npt.NDArray[np.bool_], second: npt.NDArray[np.int64], draws: npt.NDArray[np.int64] | None, window: float
) -> Value:
    value = int(within.sum()) / window
    if draws is None:
        return Value(value)
    good = draws @ np.bincount(second[within], minlength=draws.shape[1])
    return Value(value, *_interval(good / window))


def _tiers(samples: Samples, good: npt.NDArray[np.bool_]) -> dict[str, float]:
    counts = np.bincount(samples.tier[good], minlength=len(samples.tiers))
    total = int(counts[1:].sum())
    return {samples.tiers[n]: int(counts[n]) / total for n in range(1, len(counts)) if counts[n]}


def _errors(samples: Samples) -> dict[str, int]:
    counts = np.bincount(samples.outcome, minlength=len(samples.outcomes))
    return {name: int(n) for name, n in zip(samples.outcomes, counts, strict=True) if n and name != OK}
