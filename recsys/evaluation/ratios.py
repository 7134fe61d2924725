"""Ratios of sums over users, with intervals that know that a user's answers are not independent."""

from __future__ import annotations

from math import nan, sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING, Final

import numpy as np

from recsys.errors import InputError
from recsys.evaluation.intervals import LEVEL, Interval

if TYPE_CHECKING:
    import numpy.typing as npt

_WIDTH: Final = NormalDist().inv_cdf(0.5 + LEVEL / 2)  # standard errors on each side


def ratio(numerator: npt.NDArray[np.floating], denominator: npt.NDArray[np.floating]) -> Interval:
    """The sum of one count over the sum of another, such as clicks per answer.

    The interval is that of the delta method with users as units: Var(R) = Var(y - R x) / (U mean(x)^2), where y and x
    are a user's counts and R is the ratio (Deng, Knoblich and Lu 2018, "Applying the Delta Method in Metric
    Analytics").

    Args:
        numerator: (U,) of each user.
        denominator: (U,) of each user.

    Returns:
        Not a number where there is nothing to divide by; no interval (not a number) with fewer than two users.

    Raises:
        InputError: the shapes differ.
    """
    value, error = _with_error(numerator, denominator)
    return Interval(value, value - _WIDTH * error, value + _WIDTH * error)


def difference(
    ours: tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]],
    theirs: tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]],
) -> Interval:
    """The ratio of one group of users less that of another, whose users are others.

    Args:
        ours: numerator (U,) and denominator (U,).
        theirs: (V,) and (V,).
    """
    (a, error_a), (b, error_b) = _with_error(*ours), _with_error(*theirs)
    width = _WIDTH * sqrt(error_a**2 + error_b**2)
    return Interval(a - b, a - b - width, a - b + width)


def _with_error(numerator: npt.NDArray[np.floating], denominator: npt.NDArray[np.floating]) -> tuple[float, float]:
    if numerator.shape != denominator.shape or numerator.ndim != 1:
        raise InputError(
            "both counts need one value per user", field="denominator", value=(numerator.shape, denominator.shape)
        )
    if not denominator.sum():
        return nan, nan
    value = float(numerator.sum() / denominator.sum())
    users = len(numerator)
    if users < 2:
        return value, nan
    left = numerator - value * denominator
    return value, float(left.std(ddof=1) / (sqrt(users) * denominator.mean()))
