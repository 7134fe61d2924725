"""`windfire bench rere`: reinforcement on top of one training, against going on with that training.

Data sets, work folder and arms are those of the quality benchmark (`benchmarks.quality`). All arms of a seed go on from
the same weights, so their differences are taken inside seeds as well as inside users.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.figures import Figure, Report, environment, now
from benchmarks.measure import CommandError
from benchmarks.quality import Outcome, Quality, public_sources
from benchmarks.quality_arms import Cases
from benchmarks.quality_figures import accuracy_figures, gains, list_figures
from recsys.datasets.prepared import PreparedData
from recsys.evaluation.answers import VIEWS
from recsys.evaluation.intervals import draw_users, intervals, smallest_detectable
from recsys.evaluation.metrics import KS, ndcg, recall

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from benchmarks.quality_figures import ArmResult
    from benchmarks.quality_settings import QualitySettings

CONFIG: Final = Path(__file__).with_name("rere.yaml")
COMPARED: Final = {"recall": recall, "ndcg": ndcg}
_SEED: Final = 20260102  # of the bootstrap; any number, but always the same


def bench_rere(
    settings: QualitySettings,
    work: Path,
    command: str,
    datasets: Sequence[str],
    methods: Sequence[str],
    *,
    say: Callable[[str], None],
) -> Outcome:
    """Measure every arm on the public data sets, found by WINDFIRE_DATA.

    Args:
        settings: of rere.yaml.
        work: folder of everything that is kept between calls; that of `windfire bench quality` shares its trainings.
        command: the command line that repeats this, for the report.
        datasets: names; none = all.
        methods: names; none = each data set's own.
        say: told in one line what was done.
    """
    quality = Quality(settings, work, public_sources(), say)
    started, figures = now(), list[Figure]()
    for dataset in settings.chosen_datasets(datasets):
        try:
            quality.prepare(dataset)
        except CommandError as error:
            quality.failures.append(f"{dataset}: {error}")
            continue
        prepared = quality.prepared(dataset)
        data = PreparedData.load(prepared)
        chosen = settings.chosen_methods(dataset, methods)
        results = quality.arms(dataset, data, prepared, chosen)
        figures += rere_figures(dataset, data, results, settings)
    report = Report(command, settings.model_dump(), settings.seeds, figures, started, environment())
    return Outcome(report, quality.failures)


def rere_figures(
    dataset: str, data: PreparedData, results: dict[str, list[ArmResult]], settings: QualitySettings
) -> list[Figure]:
    """All figures of one data set.

    Args:
        dataset: its name.
        data: as prepared.
        results: method to its arms, one per seed.
        settings: of the benchmark; `against` says what is subtracted.
    """
    rng = np.random.default_rng(_SEED)
    cases = Cases.of(data, settings.cases)
    users = draw_users(len(cases.targets), rng=rng, replicates=settings.replicates)
    figures = list[Figure]()
    for method, arms in results.items():
        for view in VIEWS:
            name = f"rere.{dataset}.{method}.{view}"
            mask = cases.histories if view == "masked" else None
            figures += accuracy_figures(name, _ranks(arms, view), users, rng)
            figures += list_figures(name, [arm.views[view].lists for arm in arms], data.train_counts, mask)
            for other in settings.methods[method].against:
                if other in results:
                    figures += differences(name, other, arms, results[other], view, users, rng)
        figures += _learning(f"rere.{dataset}.{method}", arms)
    return figures


def differences(
    name: str,
    other: str,
    arms: Sequence[ArmResult],
    controls: Sequence[ArmResult],
    view: str,
    users: npt.NDArray[np.float32],
    rng: np.random.Generator,
) -> list[Figure]:
    """Recall and NDCG at every K minus a control's, and the smallest gain that these users and seeds would show.

    Only seeds that both have count; each is compared with itself. The smallest detectable gain is 2.8 standard errors,
    which a test at 5 % finds four times in five.
    """
    common = sorted({arm.seed for arm in arms} & {arm.seed for arm in controls})
    pair = [_ranks([one for seed in common for one in many if one.seed == seed], view) for many in (arms, controls)]
    wanted = [(metric, k) for metric in COMPARED for k in KS]
    found = intervals(gains(pair[0], wanted) - gains(pair[1], wanted), users, rng=rng)
    figures = list[Figure]()
    for (metric, k), interval in zip(wanted, found, strict=True):
        stem, note = f"{name}.{metric}@{k}", f"{len(common)} seeds, each with itself, same users"
        smallest = smallest_detectable(interval)
        figures += [
            Figure(f"{stem}.minus.{other}", interval.value, "share", interval.low, interval.high, users.shape[1], note),
            Figure(f"{stem}.detectable.{other}", smallest, "share", n=users.shape[1], note=note),
        ]
    return figures


def _ranks(arms: Sequence[ArmResult], view: str) -> npt.NDArray[np.int64]:
    return np.stack([arm.views[view].ranks for arm in arms])  # (S, N)


def _learning(name: str, arms: Sequence[ArmResult]) -> list[Figure]:
    """What the further training took and how it went; mean and range of the seeds."""
    values = {
        "cpu_minutes": ([arm.details["train_cpu_seconds"] / 60 for arm in arms], "minutes"),
        "steps": ([arm.details["steps"] for arm in arms], "steps"),
        "best_step": ([arm.details["best_step"] for arm in arms], "steps"),
        "valid_ndcg@10": ([arm.details["valid.ndcg@10"] for arm in arms], "share"),
    }
    logged = [arm.details["learning"] for arm in arms if "learning" in arm.details]
    for metric in ("hit_rate", "zero_advantage", "diversity", "reward", "hinted"):
        values[metric] = ([one[metric] for one in logged], "share")
    values["kl"] = ([one["last.kl"] for one in logged], "nats")
    return [
        Figure(f"{name}.{metric}", float(np.mean(found)), unit, min(found), max(found), len(found), "range of seeds")
        for metric, (found, unit) in values.items()
        if found
    ]
