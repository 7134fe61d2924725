"""Intervals that resample users and seeds both.

A method is measured on the same U users under S seeds. A replicate draws S seeds and U users with replacement,
independently of each other, and averages over the drawn crossing; the interval is that of the replicates'
percentiles. With three seeds the seeds' share is itself known roughly: read it as a lower bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Final

import numpy as np

from recsys.errors import InputError

if TYPE_CHECKING:
    import numpy.typing as npt

REPLICATES: Final = 1000
LEVEL: Final = 0.95
POWER: Final = 0.8
_CHUNK = 1 << 24  # drawn users held at once


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the ends of its interval."""

    value: float
    low: float
    high: float


def draw_users(users: int, *, rng: np.random.Generator, replicates: int = REPLICATES) -> npt.NDArray[np.float32]:
    """How often each replicate drew each user: (replicates, U) float32, every row sums to U."""
    counts = np.empty((replicates, users), dtype=np.float32)
    step = max(1, _CHUNK // max(users, 1))
    for begin in range(0, replicates, step):
        rows = min(step, replicates - begin)
        drawn = rng.integers(users, size=(rows, users)) + users * np.arange(rows)[:, None]
        counts[begin : begin + rows] = np.bincount(drawn.ravel(), minlength=rows * users).reshape(rows, users)
    return counts


def resampled_means(
    gains: npt.NDArray[np.floating], users: npt.NDArray[np.float32], *, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """The mean of each replicate.

    Args:
        gains: (M, S, U) what each of M metrics gives each user under each seed; not a number where the metric says
            nothing about a user, who is then left out of that metric.
        users: (R, U) from `draw_users`.
        rng: draws the seeds.

    Returns:
        (M, R); not a number where a replicate drew no user that the metric speaks of.

    Raises:
        InputError: the shapes do not fit.
    """
    if gains.ndim != 3 or users.shape[1:] != gains.shape[2:]:
        raise InputError("gains must be (M, S, U) and users (R, U)", field="gains", value=(gains.shape, users.shape))
    metrics, seeds, count = gains.shape
    spoken = ~np.isnan(gains)
    filled = np.where(spoken, gains, 0.0).astype(np.float32).reshape(metrics * seeds, count)
    sums = (filled @ users.T).reshape(metrics, seeds, -1)  # (M, S, R)
    if spoken.all():
        weights = np.full_like(sums, count)
    else:
        weights = (spoken.reshape(metrics * seeds, count).astype(np.float32) @ users.T).reshape(sums.shape)
    drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=users.shape[0]).T  # (S, R)
    with np.errstate(invalid="ignore"):
        means: npt.NDArray[np.float64] = (sums * drawn).sum(axis=1, dtype=np.float64) / (weights * drawn).sum(axis=1)
    return means


def intervals(
    gains: npt.NDArray[np.floating], users: npt.NDArray[np.float32], *, rng: np.random.Generator
) -> list[Interval]:
    """One interval per metric; arguments as `resampled_means`."""
    means = resampled_means(gains, users, rng=rng)
    return _percentiles(_means(gains), means)


def paired_intervals(
    gains: npt.NDArray[np.floating],
    other: npt.NDArray[np.floating],
    users: npt.NDArray[np.float32],
    *,
    rng: np.random.Generator,
) -> list[Interval]:
    """Intervals of the difference of two methods measured on the same users.

    Both see the same drawn users; their seeds are drawn apart, since a seed ties nothing of one model to the other.

    Args:
        gains: (M, S, U).
        other: (M, S', U); what is subtracted.
        users: (R, U) from `draw_users`.
        rng: draws the seeds.

    Raises:
        InputError: the shapes do not fit.
    """
    if gains.shape[::2] != other.shape[::2]:
        raise InputError(
            "both methods need the same metrics and users", field="other", value=(gains.shape, other.shape)
        )
    means = resampled_means(gains, users, rng=rng) - resampled_means(other, users, rng=rng)
    return _percentiles(_means(gains) - _means(other), means)


def _means(gains: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    spoken = ~np.isnan(gains)
    sums = np.where(spoken, gains, 0.0).sum(axis=(1, 2), dtype=np.float64)
    return np.asarray(sums / np.maximum(spoken.sum(axis=(1, 2)), 1))


def _percentiles(values: npt.NDArray[np.float64], means: npt.NDArray[np.float64]) -> list[Interval]:
    tail = 50 * (1 - LEVEL)
    speaking = np.where(np.isnan(means), values[:, None], means)
    low, high = np.percentile(speaking, [tail, 100 - tail], axis=1)
    return [Interval(float(v), float(a), float(b)) for v, a, b in zip(values, low, high, strict=True)]


def smallest_detectable(difference: Interval) -> float:
    """The true difference that this comparison would find significant (5 %, two-sided) in four of five repetitions.

    The interval's half width is 1.96 standard errors; 1.96 + 0.84 of them are needed.

    Args:
        difference: of two methods on the same cases.
    """
    error = (difference.high - difference.low) / (2 * NormalDist().inv_cdf(0.5 + LEVEL / 2))
    return error * (NormalDist().inv_cdf(0.5 + LEVEL / 2) + NormalDist().inv_cdf(POWER))
