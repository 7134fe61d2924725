"""From the arms' ranks and lists to named figures, and from them to one sentence of advice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.figures import Figure
from benchmarks.quality_arms import Cases
from recsys.evaluation.answers import VIEWS
from recsys.evaluation.intervals import Interval, draw_users, intervals, paired_intervals
from recsys.evaluation.lists import GROUPS, coverage, gini, invalid_rate, mean_popularity, popularity_groups
from recsys.evaluation.metrics import GAINS, KS, ndcg, recall

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from benchmarks.quality_settings import QualitySettings
    from recsys.datasets.prepared import PreparedData
    from recsys.evaluation.answers import Answered

K: Final = 10
_SEED: Final = 20260101  # of the bootstrap; any number, but always the same
_SIMPLEST_FIRST: Final = ("popularity", "itemcf", "ease", "sasrec", "flat", "nezha")


@dataclass(frozen=True, slots=True)
class ArmResult:
    """What one arm left behind.

    Attributes:
        views: history masked and unmasked.
        cpu_seconds: user + system of all its processes.
        details: what was chosen and spent.
        seed: of the arm.
    """

    views: dict[str, Answered]
    cpu_seconds: float
    details: dict[str, Any]
    seed: int

    def summary(self) -> str:
        """One line for people."""
        shown = [f"{view} NDCG@10 {ndcg(self.views[view].ranks, K).mean():.4f}" for view in VIEWS]
        return f"{', '.join(shown)}, {self.cpu_seconds / 60:.1f} CPU minutes"


def dataset_figures(
    dataset: str,
    data: PreparedData,
    results: Mapping[str, Sequence[ArmResult]],
    settings: QualitySettings,
    preparation_seconds: float,
) -> list[Figure]:
    """All figures of one data set.

    Args:
        dataset: its name.
        data: as prepared.
        results: method to its arms, one per seed.
        settings: of the benchmark.
        preparation_seconds: CPU seconds of import and offline jobs, shared by all methods.
    """
    rng = np.random.default_rng(_SEED)
    cases = Cases.of(data, settings.cases)
    minutes = preparation_seconds / 60
    figures = [
        Figure(f"quality.{dataset}.preparation.cpu_minutes", minutes, "minutes", note="import, Spark, text, SIDs")
    ]
    if not len(cases.targets):
        return figures
    users = draw_users(len(cases.targets), rng=rng, replicates=settings.replicates)
    groups = popularity_groups(data.train_counts)[cases.targets]
    for method, arms in results.items():
        for view in VIEWS:
            name = f"quality.{dataset}.{method}.{view}"
            mask = cases.histories if view == "masked" else None
            ranks = np.stack([arm.views[view].ranks for arm in arms])  # (S, N)
            figures += accuracy_figures(name, ranks, users, rng)
            figures += _by_group(name, ranks, groups, users, rng)
            figures += list_figures(name, [arm.views[view].lists for arm in arms], data.train_counts, mask)
            for other in settings.methods[method].against:
                if other in results:
                    change = settings.methods[method].change_of == other
                    both = _same_seeds(arms, results[other]) if change else (arms, results[other])
                    pair = [np.stack([arm.views[view].ranks for arm in one]) for one in both]
                    figures += _differences(name, other, pair[0], pair[1], users, rng)
        figures.append(_cost(f"quality.{dataset}.{method}", arms))
    return figures


def _same_seeds(
    arms: Sequence[ArmResult], other: Sequence[ArmResult]
) -> tuple[Sequence[ArmResult], Sequence[ArmResult]]:
    """The arms whose seed both methods have: else what tells seeds apart would be taken for the change's doing.

    All of them where no seed is common.
    """
    common = {arm.seed for arm in arms} & {arm.seed for arm in other}
    if not common:
        return arms, other
    return [arm for arm in arms if arm.seed in common], [arm for arm in other if arm.seed in common]


def gains(ranks: npt.NDArray[np.int64], wanted: Sequence[tuple[str, int]]) -> npt.NDArray[np.float64]:
    """(S, N) ranks -> (M, S, N) gains of the wanted (metric, K)."""
    return np.stack([GAINS[metric](ranks, k) for metric, k in wanted])


def accuracy_figures(
    name: str, ranks: npt.NDArray[np.int64], users: npt.NDArray[np.float32], rng: np.random.Generator
) -> list[Figure]:
    """Every metric at every K of (S, N) ranks, as `name`.METRIC@K."""
    wanted = [(metric, k) for metric in GAINS for k in KS]
    found = intervals(gains(ranks, wanted), users, rng=rng)
    return [_figure(f"{name}.{metric}@{k}", i, ranks) for (metric, k), i in zip(wanted, found, strict=True)]


def _by_group(
    name: str,
    ranks: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int8],
    users: npt.NDArray[np.float32],
    rng: np.random.Generator,
) -> list[Figure]:
    hits = recall(ranks, K)
    split = np.stack([np.where(groups == group, hits, np.nan) for group in range(len(GROUPS))])
    found = intervals(split, users, rng=rng)
    counts = [int((groups == group).sum()) for group in range(len(GROUPS))]
    return [
        Figure(f"{name}.recall_{group}@{K}", i.value, "share", i.low, i.high, n)
        for group, i, n in zip(GROUPS, found, counts, strict=True)
    ]


def list_figures(
    name: str,
    lists: Sequence[npt.NDArray[np.int32]],
    train_counts: npt.NDArray[np.int64],
    mask: Sequence[npt.NDArray[np.integer]] | None,
) -> list[Figure]:
    """Coverage, Gini, popularity and validity of the lists of several seeds, as `name`.METRIC."""
    items, cases = len(train_counts), len(lists[0])
    best = [array[:, :K] for array in lists]
    values = {
        f"coverage@{K}": ([coverage(array, items) for array in best], "share"),
        f"gini@{K}": ([gini(array, items) for array in best], "gini"),
        f"popularity@{K}": ([mean_popularity(array, train_counts) for array in best], "interactions"),
        f"invalid@{lists[0].shape[1]}": ([invalid_rate(array, items, mask) for array in lists], "share"),
    }
    return [
        Figure(
            f"{name}.{metric}", float(np.mean(found)), unit, min(found), max(found), cases, "mean and range of seeds"
        )
        for metric, (found, unit) in values.items()
    ]


def _differences(
    name: str,
    other: str,
    ranks: npt.NDArray[np.int64],
    other_ranks: npt.NDArray[np.int64],
    users: npt.NDArray[np.float32],
    rng: np.random.Generator,
) -> list[Figure]:
    wanted = [("recall", K), ("ndcg", K)]
    found = paired_intervals(gains(ranks, wanted), gains(other_ranks, wanted), users, rng=rng)
    return [
        _figure(f"{name}.{metric}@{k}.minus.{other}", i, ranks, "same users")
        for (metric, k), i in zip(wanted, found, strict=True)
    ]


def _cost(name: str, arms: Sequence[ArmResult]) -> Figure:
    minutes = [arm.cpu_seconds / 60 for arm in arms]
    return Figure(
        f"{name}.cpu_minutes", float(np.mean(minutes)), "minutes", min(minutes), max(minutes), len(arms),
        "per seed: fitting, choice on validation, answering all test users twice; mean and range",
    )  # fmt: skip


def _figure(name: str, found: Interval, ranks: npt.NDArray[np.int64], note: str = "") -> Figure:
    seeds = f"{len(ranks)} seed{'s' if len(ranks) > 1 else ''}"
    return Figure(
        name, found.value, "share", found.low, found.high, ranks.shape[1], f"{seeds}, {note}" if note else seeds
    )


def advice(dataset: str, results: Mapping[str, Sequence[ArmResult]], *, replicates: int = 1000) -> str:
    """One sentence: the simplest method that no other beats by more than chance.

    Methods are compared by NDCG@10, history masked, on the same test users; a method beats another where the whole
    interval of the difference lies above zero.

    Args:
        dataset: how the sentence calls the log.
        results: method to its arms, one per seed.
        replicates: of the bootstrap.
    """
    if not results:
        return f"Nothing could be measured on {dataset}, so nothing is recommended."
    ranks = {name: np.stack([arm.views["masked"].ranks for arm in arms]) for name, arms in results.items()}
    order = [*(name for name in _SIMPLEST_FIRST if name in ranks), *(n for n in ranks if n not in _SIMPLEST_FIRST)]
    cases = next(iter(ranks.values())).shape[1]
    if not cases:
        return f"{dataset} has no test case: nothing can be recommended; give users with three or more positive events."
    rng = np.random.default_rng(_SEED)
    users = draw_users(cases, rng=rng, replicates=replicates)
    value = {name: float(ndcg(array, K).mean()) for name, array in ranks.items()}
    for name in order:
        better = {
            other: _difference(ranks[other], ranks[name], users, rng) for other in order if value[other] > value[name]
        }
        if all(found.low <= 0 for found in better.values()):
            break
    text = f"On {dataset} {name} is enough for you: NDCG@10 {value[name]:.4f} over {cases:,} test users"
    if better:
        best = max(better, key=lambda other: value[other])
        found = better[best]
        return f"{text}; {best}'s {found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}] is within chance."
    runner = max((other for other in order if other != name), key=lambda other: value[other], default=None)
    if runner is None:
        return f"{text}; nothing else was measured."
    found = _difference(ranks[name], ranks[runner], users, rng)
    return f"{text}, {found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}] over {runner}, the next."


def _difference(
    ranks: npt.NDArray[np.int64], other: npt.NDArray[np.int64], users: npt.NDArray[np.float32], rng: np.random.Generator
) -> Interval:
    wanted = [("ndcg", K)]
    return paired_intervals(gains(ranks, wanted), gains(other, wanted), users, rng=rng)[0]
