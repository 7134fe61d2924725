"""`windfire bench quality`: import, split, fit every method under every seed, measure on the test part.

All work lies below one folder: `data/<dataset>/` (tables, offline jobs, preparation.json),
`arms/<dataset>/<method>-<seed>-<key>/` and `runs/<key>/` (training runs, shared by the decoders of the same weights).
An arm whose result is there is not repeated; its key covers the method's settings, the seed and all that the offline
jobs wrote. It does not cover the code: choose another folder after changing it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import yaml

from benchmarks.figures import ROOT, Figure, Report, environment, now
from benchmarks.measure import CommandError, run_measured
from benchmarks.quality_arms import TRAINED
from benchmarks.quality_figures import ArmResult, advice, dataset_figures
from benchmarks.settings_file import merged
from recsys.datasets.prepared import PreparedData
from recsys.errors import DataError
from recsys.evaluation.answers import VIEWS, Answered
from recsys.storage import read_json, sha256_file, sha256_parts, staged_directory, write_json_atomically
from training.fusion.settings import FusionSettings
from training.recommender.settings import TrainSettings
from training.rere.settings import RereSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.quality_settings import DatasetSettings, QualitySettings

ARM_FORMAT: Final = "windfire.quality_arm/1"
OWN: Final = "own"
_OF_TRAINING: Final = ("train", "further", "rere")  # settings that make a training run what it is


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a benchmark ends with.

    Attributes:
        report: over all arms that ended well.
        failures: one text per arm or data set that did not.
        advice: one sentence; empty for the public data sets.
    """

    report: Report
    failures: list[str]
    advice: str = ""


def bench(
    settings: QualitySettings,
    work: Path,
    command: str,
    datasets: Sequence[str],
    methods: Sequence[str],
    *,
    say: Callable[[str], None],
) -> Outcome:
    """Measure the public data sets, found by WINDFIRE_DATA.

    Args:
        settings: of quality.yaml.
        work: folder of everything that is kept between calls.
        command: the command line that repeats this, for the report.
        datasets: names; none = all.
        methods: names; none = each data set's own.
        say: told in one line what was done.
    """
    quality = Quality(settings, work, public_sources(), say)
    started, figures = now(), list[Figure]()
    for dataset in settings.chosen_datasets(datasets):
        figures += quality.measure(dataset, methods)[0]
    return Outcome(_report(quality, command, started, figures), quality.failures)


def public_sources() -> Path:
    """The folder of the public data sets: WINDFIRE_DATA."""
    return Path(os.environ.get("WINDFIRE_DATA", ROOT.parent / "shared" / "data"))


def bench_own_log(
    settings: QualitySettings,
    work: Path,
    command: str,
    tables: Path,
    split: str,
    methods: Sequence[str],
    *,
    say: Callable[[str], None],
) -> Outcome:
    """Measure an imported log and end with one recommendation; figures are called quality.own.*.

    Args:
        settings: of quality.yaml.
        work: folder of everything that is kept between calls.
        command: the command line that repeats this, for the report.
        tables: directory written by `windfire import`.
        split: strategy of the offline jobs.
        methods: names; none = the default ones that do not need the token shape.
        say: told in one line what was done.
    """
    offline = merged(settings.own.offline, {"split": {"strategy": split}})
    own = settings.own.model_copy(update={"source": tables.resolve().name, "offline": offline})
    settings = settings.model_copy(update={"datasets": {OWN: own}})
    wanted = methods or [name for name in settings.default_methods if not name.startswith("token_")]
    quality = Quality(settings, work, tables.resolve().parent, say)
    started = now()
    figures, results = quality.measure(OWN, wanted)
    text = advice("your log", results, replicates=settings.replicates)
    return Outcome(_report(quality, command, started, figures), quality.failures, text)


def _report(quality: Quality, command: str, started: str, figures: list[Figure]) -> Report:
    settings = quality.settings
    return Report(command, settings.model_dump(), settings.seeds, figures, started, environment())


@dataclass(frozen=True, slots=True)
class Quality:
    """One benchmark in progress.

    Attributes:
        settings: of quality.yaml.
        work: folder of everything that is kept between calls.
        sources: folder of the data sets' sources.
        say: told in one line what was done.
        failures: grows by one text per arm or data set that failed.
    """

    settings: QualitySettings
    work: Path
    sources: Path
    say: Callable[[str], None]
    failures: list[str] = field(default_factory=list)

    def measure(self, dataset: str, methods: Sequence[str]) -> tuple[list[Figure], dict[str, list[ArmResult]]]:
        """Prepare one data set and run its arms; what fails is noted in `failures`.

        Args:
            dataset: name.
            methods: names; none = the data set's own.

        Returns:
            the figures, and per method its arms.
        """
        chosen = self.settings.chosen_methods(dataset, methods)
        try:
            preparation = self.prepare(dataset)
        except CommandError as error:
            self.failures.append(f"{dataset}: {error}")
            return [], {}
        return self.measure_prepared(dataset, self.prepared(dataset), chosen, preparation_seconds=preparation)

    def prepared(self, dataset: str) -> Path:
        """The work directory that `prepare` leaves."""
        return self.work / "data" / dataset / "prepared"

    def measure_prepared(
        self, dataset: str, prepared: Path, methods: Sequence[str], *, preparation_seconds: float
    ) -> tuple[list[Figure], dict[str, list[ArmResult]]]:
        """As `measure`, on a work directory of the offline jobs."""
        data = PreparedData.load(prepared)
        results = self.arms(dataset, data, prepared, methods)
        return dataset_figures(dataset, data, results, self.settings, preparation_seconds), results

    def prepare(self, dataset: str) -> float:
        """Import and run the offline jobs, unless this was done with the same settings; returns CPU seconds.

        Raises:
            DataError: the source is not there.
            CommandError: a step failed.
        """
        settings, folder = self.settings.datasets[dataset], self.work / "data" / dataset
        before = [name for name in (settings.base, settings.since) if name]
        for name in before:
            self.prepare(name)
        key = self.key(dataset)
        marker = folder / "preparation.json"
        if marker.exists() and (known := read_json(marker))["key"] == key:
            return float(known["cpu_seconds"])
        steps = self.steps(dataset)
        folder.mkdir(parents=True, exist_ok=True)
        if settings.base and not (folder / "prepared").exists():
            with staged_directory(folder / "prepared") as staged:
                shutil.copytree(self.prepared(settings.base), staged, dirs_exist_ok=True)
        (folder / "offline.yaml").write_text(yaml.safe_dump(settings.offline))
        total = 0.0
        for number, step in enumerate(steps):
            measured = run_measured([sys.executable, "-m", "windfire", *step], log=folder / f"step{number}.log")
            total += measured.cpu_seconds
            self.say(f"{dataset}: windfire {step[0]}, {measured.cpu_seconds:.0f} CPU s, {measured.seconds:.0f} s")
        write_json_atomically(marker, {"key": key, "cpu_seconds": total})
        return total

    def key(self, dataset: str) -> str:
        """Of all that the preparation reads."""
        settings = self.settings.datasets[dataset]
        offline = json.dumps(settings.offline, sort_keys=True)
        before = [self.key(name) for name in (settings.base, settings.since) if name]
        warm = ["warm"] if settings.warm_start else []
        return sha256_parts([self._source_key(settings), settings.importer, offline, *before, *warm])

    def steps(self, dataset: str) -> list[list[str]]:
        """The commands that prepare a data set."""
        settings, folder, steps = self.settings.datasets[dataset], self.work / "data" / dataset, list[list[str]]()
        tables = str(self._tables(dataset))
        if settings.importer and not settings.base:
            steps.append(["import", settings.importer, str(self._source(settings)), "--out", tables])
        prepared, config = str(folder / "prepared"), str(folder / "offline.yaml")
        warm = ["--warm-start", str(self.prepared(settings.since))] if settings.warm_start else []
        return [*steps, ["offline", "run", "--data", tables, "--out", prepared, "--config", config, *warm]]

    def _tables(self, dataset: str) -> Path:
        settings = self.settings.datasets[dataset]
        if settings.base:
            return self._tables(settings.base)
        source = self._source(settings)
        return self.work / "data" / dataset / "tables" if settings.importer else source

    def _source(self, settings: DatasetSettings) -> Path:
        source = self.sources / settings.source
        if not source.is_dir():
            raise DataError(
                "a data set of the benchmark is not there",
                field="source",
                value=str(source),
                remedy="set WINDFIRE_DATA to the folder of the public data sets, or give your own tables by --data",
            )
        return source

    def _source_key(self, settings: DatasetSettings) -> str:
        files = sorted(file for file in self._source(settings).rglob("*") if file.is_file())
        return sha256_parts([part for file in files for part in (file.name, sha256_file(file))])

    def arms(
        self, dataset: str, data: PreparedData, prepared: Path, methods: Sequence[str]
    ) -> dict[str, list[ArmResult]]:
        """Run the arms of the methods, or read what they left; those that fail are noted and left out."""
        inputs = _fingerprint(data)
        results: dict[str, list[ArmResult]] = {}
        for method in methods:
            for seed in self.settings.seeds_of(dataset, method):
                try:
                    results.setdefault(method, []).append(self._arm(dataset, method, seed, prepared, inputs))
                except CommandError as error:
                    self.failures.append(f"{dataset} {method} seed {seed}: {error}")
        return {method: arms for method, arms in results.items() if arms}

    def _arm(self, dataset: str, method: str, seed: int, prepared: Path, inputs: str) -> ArmResult:
        chosen = self.settings.methods[method]
        wanted = _resolved(chosen.kind, chosen.settings)
        stable = json.dumps(wanted, sort_keys=True)
        cases = self.settings.cases
        key = sha256_parts([ARM_FORMAT, chosen.kind, stable, str(seed), str(cases), inputs])[:16]
        folder = self.work / "arms" / dataset / f"{method}-{seed}-{key}"
        if not (folder / "result.json").exists():
            request: dict[str, Any] = {
                "work": str(prepared.resolve()),
                "cases": cases,
                "kind": chosen.kind,
                "settings": wanted,
                "seed": seed,
                "run": str(self._run(chosen.kind, wanted, _OF_TRAINING, seed, inputs)),
                "start": str(self._run("recommender", wanted, ["train"], seed, inputs)),
            }
            if "second" in wanted:
                second = {"train": wanted["second"]}
                request["second"] = str(self._run("recommender", second, _OF_TRAINING, seed, inputs))
            write_json_atomically(folder / "request.json", request)
            command = [sys.executable, "-m", "benchmarks.quality_arm", str(folder.resolve())]
            measured = run_measured(command, log=folder / "log.txt")
            answers = read_json(folder / "answers.json")
            total = measured.cpu_seconds + answers["carried_cpu_seconds"]
            write_json_atomically(folder / "result.json", {"cpu_seconds": total, "details": answers["details"]})
        result = read_json(folder / "result.json")
        arm = ArmResult(
            views={
                view: Answered(np.load(folder / f"ranks_{view}.npy"), np.load(folder / f"lists_{view}.npy"))
                for view in VIEWS
            },
            cpu_seconds=result["cpu_seconds"],
            details=result["details"],
            seed=seed,
        )
        self.say(f"{dataset}: {method}, seed {seed}: {arm.summary()}")
        return arm

    def _run(self, kind: str, wanted: Mapping[str, Any], parts: Sequence[str], seed: int, inputs: str) -> Path:
        """Where a training run lives: decoders of the same weights, and what goes on from them, find it there."""
        training = [json.dumps(wanted[part], sort_keys=True) for part in parts if part in wanted] or ["{}"]
        return (self.work / "runs" / sha256_parts([kind, *training, str(seed), inputs])[:16]).resolve()


def _resolved(kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """With the trainers' defaults written out: an arm is to be repeated when one of them changes."""
    if kind not in TRAINED:
        return dict(settings)
    train = dict(settings.get("train", {}))
    resolved = {**settings, "train": _training(train)}
    if "fusion" in settings:
        unread = set() if "second" in settings else {"second"}
        resolved["fusion"] = FusionSettings.parse(dict(settings["fusion"])).model_dump(mode="json", exclude=unread)
    if "second" in settings:
        resolved["second"] = _training(settings["second"])
    if kind == "continued":
        further = merged(train, settings.get("further", {}))
        resolved["further"] = _training(further)
    if kind == "rere":
        resolved["rere"] = RereSettings.parse(dict(settings.get("rere", {}))).model_dump(mode="json")
    return resolved


def _training(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As a run's fingerprint has it: settings that came later do not show while they are off."""
    training: dict[str, Any] = json.loads(TrainSettings.parse(dict(settings)).identity())
    return training


def _fingerprint(data: PreparedData) -> str:
    """Of all that an arm reads."""
    split = data.sequences
    arrays = (
        data.codes, data.text, data.collaborative, data.train_counts, split.items, split.offsets,
        split.train_end, split.valid_index, split.test_index,
    )  # fmt: skip
    return sha256_parts([data.tokenizer_version, *(np.ascontiguousarray(array).tobytes() for array in arrays)])
