"""Short vectors: SMEC beside its controls and its parts, on judged retrieval and on a catalogue's items.

Every method's settings are chosen on a part of the train queries, then it is fitted on all of them under every seed and
measured once on the test queries. Finished fits are kept, so that a call that was interrupted goes on.
"""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch

from benchmarks.figures import Figure, Report, environment, now
from benchmarks.smec_data import items, scifact
from benchmarks.smec_settings import REGIMES, UNTRAINED
from recsys.errors import ConfigError
from recsys.evaluation.intervals import draw_users, intervals, paired_intervals, smallest_detectable
from recsys.storage import sha256_parts, write_bytes_atomically
from training.smec.controls import MatryoshkaAdaptor, PrincipalComponents, SearchAdaptor, Truncation
from training.smec.course import CompressorCourse
from training.smec.fitting import Fitting
from training.smec.measuring import measure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from benchmarks.smec_data import Subject
    from benchmarks.smec_settings import BenchSettings, Method, Regime
    from recsys.evaluation.intervals import Interval
    from training.smec.course import Course, Reducer
    from training.smec.data import VectorData
    from training.smec.settings import SmecSettings

    Gains = Mapping[str, npt.NDArray[np.float64]]

REFERENCE: Final = "smec"
FULL: Final = "full"
UNSUPERVISED: Final = "_unsupervised"
_COST: Final = "choice and all seeds"


def named_directories(values: Sequence[str]) -> dict[str, Path]:
    """NAME=WORK to name and directory.

    Raises:
        ConfigError: another form, a name that is no lower-case word, or one that is given twice.
    """
    found: dict[str, Path] = {}
    for value in values:
        name, _, folder = value.partition("=")
        if not re.fullmatch(r"[a-z0-9_]+", name) or not folder or name in {*found, "scifact"}:
            raise ConfigError(
                "not NAME=WORK with a name of its own",
                field="data",
                value=value,
                remedy="for instance beauty=build/quality/data/beauty/prepared",
            )
        found[name] = Path(folder)
    return found


def bench(
    settings: BenchSettings,
    work: Path,
    command: str,
    own: Mapping[str, Path],
    *,
    public: bool,
    say: Callable[[str], None],
) -> Report:
    """Fit and measure everything.

    Args:
        settings: of the benchmark.
        work: keeps encoded texts and finished fits.
        command: the command line, for the report.
        own: name in the figures to work directory.
        public: whether SciFact is measured.
        say: told in one line what was done.

    Raises:
        DataError: a data set is not there.
    """
    started, figures, chosen = now(), list[Figure](), {}
    subjects = [scifact(work, rows=settings.rows, say=say)] if public else []
    subjects += [items(folder, name, rows=settings.rows, cases=settings.cases) for name, folder in own.items()]
    for subject in subjects:
        runs = Runs(subject, settings, work / subject.name / "fits", say)
        gains = runs.all()
        chosen[subject.name] = runs.chosen
        figures += subject_figures(subject, gains, settings)
        figures += runs.costs()
    # a file sorts the methods by name: the order of the tables stands beside them
    values = {**settings.model_dump(), "order": list(settings.methods), "chosen": chosen}
    return Report(command, values, settings.seeds, figures, started, environment())


class _Part(NamedTuple):
    """What is fitted on, what is measured, and the documents whose neighbours are counted."""

    train: VectorData
    measured: VectorData
    rows: npt.NDArray[np.int64]


class Runs:
    """The fits of one data set.

    Args:
        subject: the data set.
        settings: of the benchmark.
        folder: keeps finished fits.
        say: told in one line what was done.

    Attributes:
        chosen: by the method's name in the figures.
    """

    def __init__(self, subject: Subject, settings: BenchSettings, folder: Path, say: Callable[[str], None]) -> None:
        self.subject, self.settings, self.folder, self._say = subject, settings, folder, say
        self.chosen: dict[str, dict[str, Any]] = {}
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._identity = subject.train.fingerprint()
        self._final = _Part(subject.train, subject.test, subject.rows)
        train, valid = subject.train.split(settings.holdout, seed=settings.choice_seed)
        others = np.setdiff1d(np.arange(len(subject.train.documents)), subject.rows)
        order = np.random.default_rng(settings.choice_seed).permutation(others)
        self._choice = _Part(train, valid, np.sort(order[: settings.rows]) if len(others) else subject.rows)

    def all(self) -> dict[str, dict[int, Gains]]:
        """Name in the figures and width to what each measure gave, (S, U) per measure."""
        found: dict[str, dict[int, Gains]] = {}
        for regime in REGIMES:
            for name, method in self.settings.methods.items():
                if method.fits(regime) and self.settings.measures(method, self.subject.name):
                    label = name if regime == "supervised" or method.kind in UNTRAINED else name + UNSUPERVISED
                    found[label] = self._method(label, regime, method)
        return found | {FULL: _stacked([_gains(_Full(self.subject.train.dimension), self._final)])}

    def costs(self) -> list[Figure]:
        """Processor time of every method that is fitted, its choices included."""
        return [
            Figure(f"smec.{self.subject.name}.{label}.cpu_minutes", seconds / 60, "minutes", note=_COST)
            for label, seconds in self._seconds.items()
        ]

    def _method(self, label: str, regime: Regime, method: Method) -> dict[int, Gains]:
        choices = self.settings.choices(regime, method)
        scores = [self._value(label, regime, method, choice) for choice in choices] if len(choices) > 1 else [0.0]
        self.chosen[label] = choices[int(np.argmax(scores))]
        seeds = self.settings.seeds if method.kind not in UNTRAINED else self.settings.seeds[:1]
        gains = [self._fit(label, regime, method, self.chosen[label], seed, self._final) for seed in seeds]
        self._say(f"{self.subject.name} {label}: {self.chosen[label]}, by {np.round(scores, 4).tolist()}")
        return _stacked(gains)

    def _value(self, label: str, regime: Regime, method: Method, choice: dict[str, Any]) -> float:
        """What a choice is judged by: train queries that it was not fitted on, without labels the neighbours kept."""
        gains = self._fit(label, regime, method, choice, self.settings.choice_seed, self._choice)
        metric = "ndcg@10" if regime == "supervised" else "neighbours@10"
        return float(np.mean([found[metric].mean() for found in gains.values()]))

    def _fit(
        self, label: str, regime: Regime, method: Method, choice: dict[str, Any], seed: int, part: _Part
    ) -> dict[int, Gains]:
        """Fit and measure; what was done before is read."""
        settings = self.settings.of(method, choice)
        parts = [self._identity, regime, method.kind, settings.model_dump_json(), json.dumps(choice), str(seed)]
        shape = str((len(part.train.queries), len(part.measured.queries), part.rows.tolist()))
        path = self.folder / label / f"{sha256_parts([*parts, shape])[:24]}.npz"
        if path.exists():
            gains, seconds = _read(path)
        else:
            started = time.process_time()
            data = part.train if regime == "supervised" else part.train.without_labels()
            gains = _gains(fitted(method, data, settings, choice, seed=seed), part)
            seconds = time.process_time() - started
            _write(path, gains, seconds)
        self._seconds[label] += seconds
        return gains


def _gains(method: Reducer, part: _Part) -> dict[int, Gains]:
    return {width: measure(method, part.measured, part.rows, width) for width in method.widths}


def fitted(method: Method, data: VectorData, settings: SmecSettings, choice: dict[str, Any], *, seed: int) -> Reducer:
    """One method, trained where there is something to train."""
    if method.kind == "truncation":
        return Truncation(data.dimension, settings.halvings)
    if method.kind == "pca":
        return PrincipalComponents(data.table, settings.halvings, **choice)
    table = torch.from_numpy(data.table)
    course: Course
    if method.kind == "matryoshka_adaptor":
        course = MatryoshkaAdaptor(table, settings, torch.Generator().manual_seed(seed))
    elif method.kind == "search_adaptor":
        course = SearchAdaptor(table, settings)
    else:
        course = CompressorCourse(table, settings)
    Fitting(course, data, settings, seed=seed).run()
    return course


class _Full:
    """Vectors as they are."""

    def __init__(self, dimension: int) -> None:
        self.widths = (dimension,)
        self._all = Truncation(dimension, 1)

    def reduce(self, vectors: npt.NDArray[np.float32], width: int) -> npt.NDArray[np.float32]:
        return self._all.reduce(vectors, width)


def subject_figures(
    subject: Subject, gains: Mapping[str, Mapping[int, Gains]], settings: BenchSettings
) -> list[Figure]:
    """Means with intervals, and SMEC's differences to every other method of the same labels."""
    rng = np.random.default_rng(settings.choice_seed)
    draw = cache(lambda count: draw_users(count, rng=rng, replicates=settings.replicates))
    figures = []
    for label, by_width in gains.items():
        for width, found in by_width.items():
            stem = f"smec.{subject.name}.d{width}"
            for metric, values in found.items():
                cases = values.shape[1]
                users, note = draw(cases), f"{len(values)} seeds" if len(values) > 1 else ""
                mean = intervals(values[None], users, rng=rng)[0]
                figures.append(_figure(f"{stem}.{label}.{metric}", mean, cases, note))
                for smec in references(label):
                    own = gains[smec][width][metric]
                    difference = paired_intervals(own[None], values[None], users, rng=rng)[0]
                    name = f"{stem}.{smec}.{metric}.minus.{label}"
                    figures.append(_figure(name, difference, cases, note))
                    figures.append(Figure(f"{name}.detectable", smallest_detectable(difference), "share", n=cases))
    return figures


def references(label: str) -> list[str]:
    """The kinds of SMEC that a method is compared with: those that know as much as it does, or more."""
    unlabelled = f"{REFERENCE}{UNSUPERVISED}"
    if label in (FULL, REFERENCE, unlabelled):
        return []
    if label in UNTRAINED:
        return [REFERENCE, unlabelled]
    return [unlabelled] if label.endswith(UNSUPERVISED) else [REFERENCE]


def _figure(name: str, interval: Interval, cases: int, note: str) -> Figure:
    return Figure(name, interval.value, "share", interval.low, interval.high, cases, note)


def _stacked(seeds: Sequence[Mapping[int, Gains]]) -> dict[int, Gains]:
    """Per width and measure (S, U)."""
    return {
        width: {metric: np.stack([found[width][metric] for found in seeds]) for metric in gains}
        for width, gains in seeds[0].items()
    }


def _write(path: Path, gains: Mapping[int, Gains], seconds: float) -> None:
    buffer = BytesIO()
    arrays = {f"{width}/{metric}": values for width, found in gains.items() for metric, values in found.items()}
    np.savez(buffer, allow_pickle=False, seconds=np.array(seconds), **arrays)
    write_bytes_atomically(path, buffer.getvalue())


def _read(path: Path) -> tuple[dict[int, Gains], float]:
    found: defaultdict[int, dict[str, npt.NDArray[np.float64]]] = defaultdict(dict)
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            width, _, metric = name.partition("/")
            if metric:
                found[int(width)][metric] = arrays[name]
        return dict(found), float(arrays["seconds"])
