"""`windfire bench semantic-ids`: the same log and recipe under other semantic IDs.

A data set of semantic_ids.yaml stands for one set of semantic IDs of its base. Data sets, work folder and arms are
those of the quality benchmark (`benchmarks.quality`). Figures are taken with the history masked.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.figures import Figure, Report, environment, now
from benchmarks.measure import CommandError
from benchmarks.quality import Outcome, Quality, public_sources
from benchmarks.quality_arms import Cases
from benchmarks.quality_figures import accuracy_figures, list_figures
from benchmarks.rere import differences
from recsys.datasets.prepared import PreparedData, read_job
from recsys.evaluation.intervals import draw_users
from recsys.semantic_ids.retraining import changed_prefixes
from windfire.sid_report import figures_of, subject_of_work

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from benchmarks.quality_figures import ArmResult
    from benchmarks.quality_settings import QualitySettings

    Results = dict[str, list[ArmResult]]

CONFIG: Final = Path(__file__).with_name("semantic_ids.yaml")
_SEED: Final = 20260103  # of the bootstrap; any number, but always the same
_VIEW: Final = "masked"
_NEIGHBOURS, _SAMPLE, _DEPTH = 10, 2000, 3  # of the report, see `windfire offline report-sids`


def bench_semantic_ids(
    settings: QualitySettings, work: Path, command: str, datasets: Sequence[str], *, say: Callable[[str], None]
) -> Outcome:
    """Prepare every set of semantic IDs, report on it, and measure its methods; the public logs by WINDFIRE_DATA.

    Args:
        settings: of semantic_ids.yaml.
        work: folder of everything that is kept between calls; that of `windfire bench quality` shares its data sets.
        command: the command line that repeats this, for the report.
        datasets: names; none = all.
        say: told in one line what was done.
    """
    quality = Quality(settings, work, public_sources(), say)
    started, figures = now(), list[Figure]()
    seen: dict[str, Results] = {}
    for dataset in settings.chosen_datasets(datasets):
        try:
            quality.prepare(dataset)
        except CommandError as error:
            quality.failures.append(f"{dataset}: {error}")
            continue
        figures += report_figures(dataset, quality.prepared(dataset))
        since = settings.datasets[dataset].since
        if since:
            figures += change_figures(dataset, quality.prepared(since), quality.prepared(dataset))
        figures += _measured(quality, dataset, seen)
    report = Report(command, settings.model_dump(), settings.seeds, figures, started, environment())
    return Outcome(report, quality.failures)


def report_figures(dataset: str, prepared: Path) -> list[Figure]:
    """What `windfire offline report-sids` shows, judged by the fused vectors of the work directory.

    Args:
        dataset: its name.
        prepared: the work directory.

    Returns:
        `sids.<dataset>.<what>`, and `sids.<dataset>.level<l>.density`: children per prefix over the codebook's size.
    """
    subject = subject_of_work(prepared, vectors="fused", depth=_DEPTH)
    quality = subject.measure(neighbours=_NEIGHBOURS, sample=_SAMPLE, seed=0)
    stem = f"sids.{dataset}"
    figures = [
        replace(figure, name=f"{stem}.{figure.name.removeprefix('sids.')}")
        for figure in figures_of(quality, sample=_SAMPLE)
    ]
    density = [level.children_mean / level.size for level in quality.levels]
    return figures + [
        Figure(f"{stem}.level{number}.density", value, "share") for number, value in enumerate(density, start=1)
    ]


def change_figures(dataset: str, before: Path, after: Path) -> list[Figure]:
    """`sids.<dataset>.changed_prefix<l>`: share of the items of both whose first l codes are not what they were."""
    earlier, later = _codes(before), _codes(after)
    common = [item for item in later if item in earlier]
    levels = min(len(next(iter(codes.values()))) for codes in (earlier, later))
    pair = [np.array([codes[item][:levels] for item in common], dtype=np.int32) for codes in (earlier, later)]
    return [
        Figure(f"sids.{dataset}.changed_prefix{number}", float(share), "share", n=len(common))
        for number, share in enumerate(changed_prefixes(*pair), start=1)
    ]


def _codes(prepared: Path) -> dict[str, list[int]]:
    names = dict(
        zip(*(read_job(prepared, "items")[column].to_pylist() for column in ("item_index", "item_id")), strict=True)
    )
    table = read_job(prepared, "semantic_ids")
    return {
        names[row]: codes
        for row, codes in zip(table["item_index"].to_pylist(), table["codes"].to_pylist(), strict=True)
    }


def _arms(quality: Quality, dataset: str, seen: dict[str, Results]) -> Results:
    """The arms of a data set's methods, read or run once in a call; a base is asked for by each of its variants."""
    if dataset not in seen:
        settings, prepared = quality.settings, quality.prepared(dataset)
        methods = settings.datasets[dataset].methods
        names = settings.chosen_methods(dataset, settings.default_methods if methods is None else methods)
        seen[dataset] = {} if methods == [] else quality.arms(dataset, PreparedData.load(prepared), prepared, names)
    return seen[dataset]


def _measured(quality: Quality, dataset: str, seen: dict[str, Results]) -> list[Figure]:
    """Accuracy, lists and cost of the data set's methods, and what they gain over the base's semantic IDs."""
    settings, results = quality.settings, _arms(quality, dataset, seen)
    if not results:
        return []
    base = settings.datasets[dataset].base
    default = _arms(quality, base, seen) if base else {}
    data = PreparedData.load(quality.prepared(dataset))
    cases, rng = Cases.of(data, settings.cases), np.random.default_rng(_SEED)
    users = draw_users(len(cases.targets), rng=rng, replicates=settings.replicates)
    figures = list[Figure]()
    for method, arms in results.items():
        name = f"quality.{dataset}.{method}"
        figures += _of_method(name, data, cases, arms, users, rng)
        controls = {other: results[other] for other in settings.methods[method].against if other in results}
        controls |= {"default": default[method]} if method in default else {}
        for other, control in controls.items():
            figures += differences(name, other, arms, control, _VIEW, users, rng)
    return figures


def _of_method(
    name: str,
    data: PreparedData,
    cases: Cases,
    arms: Sequence[ArmResult],
    users: npt.NDArray[np.float32],
    rng: np.random.Generator,
) -> list[Figure]:
    ranks = np.stack([arm.views[_VIEW].ranks for arm in arms])  # (S, N)
    minutes = [arm.cpu_seconds / 60 for arm in arms]
    return [
        *accuracy_figures(name, ranks, users, rng),
        *list_figures(name, [arm.views[_VIEW].lists for arm in arms], data.train_counts, cases.histories),
        Figure(
            f"{name}.cpu_minutes", float(np.mean(minutes)), "minutes", min(minutes), max(minutes), len(arms), "per seed"
        ),
    ]
