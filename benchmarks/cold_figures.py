"""What lists of items say of later items: how often these are found, and how often they are shown."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.figures import Figure
from recsys.evaluation.intervals import Interval, draw_users, intervals, resampled_means

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    Lists = npt.NDArray[np.integer]
    Bools = npt.NDArray[np.bool_]

CUTS = (10, 50)


def hits(lists: Lists, targets: npt.NDArray[np.integer], cut: int) -> npt.NDArray[np.float64]:
    """(N,) 1 where the target is among the first `cut` of a list, else 0.

    Args:
        lists: (N, k) items, best first, -1 behind the end.
        targets: (N,).
        cut: at most k.
    """
    return np.asarray((lists[:, :cut] == targets[:, None]).any(axis=1), dtype=np.float64)


def shown(lists: Lists, trained: int, cut: int) -> npt.NDArray[np.float64]:
    """(N,) the share of later items, those from `trained` on, in the first `cut` places of each list that are filled.

    0 where a list is empty.
    """
    head = lists[:, :cut]
    filled = (head >= 0).sum(axis=1)
    return np.asarray((head >= trained).sum(axis=1) / np.maximum(filled, 1), dtype=np.float64)


def exposures(lists: Lists, trained: int, wanted: float) -> list[float]:
    """How often later items are shown over how often they are wanted, per cut of `CUTS`.

    Args:
        lists: (N, k).
        trained: I.
        wanted: share of the cases that want a later item, above 0.
    """
    return [float(shown(lists, trained, cut).mean()) / wanted for cut in CUTS]


def unfairness(ratios: Sequence[float]) -> float:
    """How far the ratio that is furthest from 1 is from it, in nats either way; infinite where one is 0."""
    return max(abs(math.log(ratio)) if ratio > 0 else math.inf for ratio in ratios)


def exposure(
    shares: npt.NDArray[np.floating], wanted: Bools, users: npt.NDArray[np.float32], *, rng: np.random.Generator
) -> Interval:
    """How often later items are shown over how often they are wanted, and the 95 % interval over users and seeds.

    Replicates that draw no case in which one is wanted say nothing and are left out.

    Args:
        shares: (S, N) of `shown`, per seed.
        wanted: (N,) whether each case wants a later item; at least one does.
        users: (R, N) of `draw_users`.
        rng: draws the seeds.
    """
    both = np.stack([shares, np.broadcast_to(wanted, shares.shape)]).astype(np.float64)
    top, bottom = resampled_means(both, users, rng=rng)
    low, high = np.percentile(top[bottom > 0] / bottom[bottom > 0], [2.5, 97.5])
    return Interval(float(shares.mean() / wanted.mean()), float(low), float(high))


def source_figures(
    stem: str,
    lists: Sequence[Lists],
    targets: npt.NDArray[np.integer],
    groups: Mapping[str, Bools],
    trained: int,
    *,
    replicates: int,
    seed: int,
) -> list[Figure]:
    """The figures of one source.

    Args:
        stem: how their names begin.
        lists: per seed (N, k) items.
        targets: (N,).
        groups: name of a group of cases, with its dot, to (N,) which belong to it; what the figures before the metric
            are called. Groups without a case give no figure.
        trained: I; later items have the indices behind.
        replicates: of the bootstrap.
        seed: of the bootstrap; the same users are drawn for every source.
    """
    rng = np.random.default_rng(seed)
    users = draw_users(len(targets), rng=rng, replicates=replicates)
    note = f"{len(lists)} seeds" if len(lists) > 1 else ""
    figures = []
    for name, members in groups.items():
        if members.any():
            gains = np.array([[hits(found, targets, cut) for found in lists] for cut in CUTS])  # (2, S, N)
            gains[..., ~members] = np.nan
            for cut, found in zip(CUTS, intervals(gains, users, rng=rng), strict=True):
                figures.append(_figure(f"{stem}.{name}recall@{cut}", found, "share", int(members.sum()), note))
    wanted = targets >= trained
    if wanted.any():
        for cut in CUTS:
            shares = np.stack([shown(found, trained, cut) for found in lists])
            ratio = exposure(shares, wanted, users, rng=rng)
            figures.append(_figure(f"{stem}.exposure@{cut}", ratio, "ratio", len(targets), note))
    return figures


def _figure(name: str, interval: Interval, unit: str, count: int, note: str) -> Figure:
    return Figure(name, interval.value, unit, interval.low, interval.high, count, note)
