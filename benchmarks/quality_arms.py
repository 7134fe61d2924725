"""The arms of the quality benchmark: fit on the training part, choose on validation, answer the test cases.

An arm is a function (data, cases, settings, seed, runs) -> Answers.
"""

from __future__ import annotations

import csv
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from recsys.baselines.ease import EaseSettings
from recsys.baselines.item_cf import ItemCFSettings
from recsys.baselines.popularity import Popularity
from recsys.baselines.selection import choose_ease, choose_item_cf
from recsys.errors import ConfigError
from recsys.evaluation.answers import TOP, VIEWS, Answered, answer_by_decoder, answer_by_scores

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from benchmarks.quality_settings import Kind
    from recsys.baselines.scorer import Scorer
    from recsys.datasets.prepared import PreparedData
    from recsys.decoding.decoder import Decoder
    from training.recommender.settings import TrainSettings


@dataclass(frozen=True, slots=True)
class Answers:
    """What one method answered to the test cases.

    Attributes:
        views: history masked and unmasked.
        details: what was chosen and spent, JSON-ready.
        carried_cpu_seconds: CPU seconds that earlier processes spent on the same training run.
    """

    views: dict[str, Answered]
    details: dict[str, Any] = field(default_factory=dict)
    carried_cpu_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Cases:
    """Test cases.

    Attributes:
        histories: N arrays of items, oldest first.
        targets: (N,) items.
    """

    histories: list[npt.NDArray[np.int32]]
    targets: npt.NDArray[np.int32]

    @classmethod
    def of(cls, data: PreparedData, limit: int | None) -> Cases:
        """The test part, or `limit` cases spread evenly over it."""
        _, histories, targets = data.sequences.targets("test")
        if limit is None or limit >= len(targets):
            return cls(histories, targets)
        rows = np.linspace(0, len(targets) - 1, limit).astype(np.int64)
        return cls([histories[row] for row in rows], targets[rows])


@dataclass(frozen=True, slots=True)
class Runs:
    """Folders of training runs.

    Attributes:
        own: the arm's.
        start: of the run that the arm goes on from, if it does; shared by all that go on from it.
        second: of the model that scores beside the arm's own, if one does.
    """

    own: Path
    start: Path
    second: Path | None = None


class Arm(Protocol):
    """A method of the table."""

    def __call__(
        self, data: PreparedData, cases: Cases, settings: Mapping[str, Any], *, seed: int, runs: Runs
    ) -> Answers:
        """Fit and answer."""


def popularity(data: PreparedData, cases: Cases, settings: Mapping[str, Any], *, seed: int, runs: Runs) -> Answers:
    """Training counts; takes no settings."""
    del seed, runs
    _only(settings)
    return _scored(Popularity.fit(data), cases, {})


def item_cf(data: PreparedData, cases: Cases, settings: Mapping[str, Any], *, seed: int, runs: Runs) -> Answers:
    """Settings: `shrinks` and `decays`, the grid."""
    del seed, runs
    _only(settings, "shrinks", "decays")
    defaults = ItemCFSettings()
    model, valid = choose_item_cf(
        data, settings.get("shrinks", [defaults.shrink]), settings.get("decays", [defaults.decay])
    )
    chosen = {"shrink": model.settings.shrink, "decay": model.settings.decay, "valid.ndcg@10": valid}
    return _scored(model, cases, chosen)


def ease(data: PreparedData, cases: Cases, settings: Mapping[str, Any], *, seed: int, runs: Runs) -> Answers:
    """Settings: `regularisations` and `decays`, the grid."""
    del seed, runs
    _only(settings, "regularisations", "decays")
    defaults = EaseSettings()
    model, valid = choose_ease(
        data,
        settings.get("regularisations", [defaults.regularisation]),
        settings.get("decays", [defaults.decay]),
    )
    chosen = {"regularisation": model.settings.regularisation, "decay": model.settings.decay, "valid.ndcg@10": valid}
    return _scored(model, cases, chosen | {"items_in_model": len(model.kept)})


def sasrec(data: PreparedData, cases: Cases, settings: Mapping[str, Any], *, seed: int, runs: Runs) -> Answers:
    """Settings: those of `SasRecSettings`."""
    from recsys.baselines.sasrec import SasRec, SasRecSettings  # with it comes torch, which the others do without

    del runs
    _only(settings, *SasRecSettings.__dataclass_fields__)
    model = SasRec.fit(data, SasRecSettings(**settings), seed=seed)
    return _scored(model, cases, {"steps": model.steps, "valid.ndcg@10": model.valid_ndcg})


def recommender(data: PreparedData, cases: Cases, settings: Mapping[str, Any], *, seed: int, runs: Runs) -> Answers:
    """Settings: `train` (of `training.recommender.TrainSettings`), `decoder`, `beam`, for `fused` `fusion`, `second`.

    Beside `nezha`, without further training: `popularity` (weights of a correction) or `ceiling` (a grid of EASE).

    `fusion` holds settings of `training.fusion.FusionSettings`; its weights are chosen on validation. `second` holds
    settings of the training of a further model that it fuses; that training is counted.
    """
    from training.fusion.fitting import fit_fusion
    from training.fusion.settings import FusionSettings
    from training.recommender.settings import TrainSettings
    from training.recommender.trainer import train

    _only(settings, "train", "decoder", "beam", "fusion", "second", "popularity", "ceiling")
    train_settings = TrainSettings.parse(dict(settings.get("train", {})))
    before = time.process_time()
    manifest = train(data, train_settings, runs.own, seed=seed)
    seconds, fitted = manifest["cpu_seconds"], None
    beside = runs.second if "second" in settings else None
    if beside is not None:
        seconds += train(data, TrainSettings.parse(dict(settings["second"])), beside, seed=seed)["cpu_seconds"]
    if "fusion" in settings:
        fusion = FusionSettings.parse(dict(settings["fusion"]))
        fitted = fit_fusion(runs.own, data, fusion, second=beside)
        seconds += fitted["cpu_seconds"]
    carried = max(seconds - (time.process_time() - before), 0.0)
    return _answered(data, cases, settings, train_settings, runs.own, manifest, carried, fitted)


def continued(data: PreparedData, cases: Cases, settings: Mapping[str, Any], *, seed: int, runs: Runs) -> Answers:
    """Settings: those of `recommender`, and `further`, the training that goes on from the end of `train`."""
    from training.recommender.settings import TrainSettings
    from training.recommender.trainer import train
    from training.recommender.warm_start import load_parent

    _only(settings, "train", "further", "decoder", "beam")
    train_settings = TrainSettings.parse(dict(settings["train"]))
    further = TrainSettings.parse(dict(settings["further"]))
    before = time.process_time()
    first = train(data, train_settings, runs.start, seed=seed)
    manifest = train(data, further, runs.own, seed=seed, parent=load_parent(runs.start, data))
    carried = max(first["cpu_seconds"] + manifest["cpu_seconds"] - (time.process_time() - before), 0.0)
    return _answered(data, cases, settings, train_settings, runs.own, manifest, carried)


def rere(data: PreparedData, cases: Cases, settings: Mapping[str, Any], *, seed: int, runs: Runs) -> Answers:
    """Settings: those of `recommender`, and `rere` (of `training.rere.RereSettings`) for what follows `train`."""
    from training.recommender.settings import TrainSettings
    from training.recommender.trainer import train
    from training.rere.settings import RereSettings
    from training.rere.trainer import train_rere

    _only(settings, "train", "rere", "decoder", "beam")
    train_settings = TrainSettings.parse(dict(settings["train"]))
    before = time.process_time()
    first = train(data, train_settings, runs.start, seed=seed)
    manifest = train_rere(runs.start, data, RereSettings.parse(dict(settings["rere"])), runs.own, seed=seed)
    carried = max(first["cpu_seconds"] + manifest["cpu_seconds"] - (time.process_time() - before), 0.0)
    answers = _answered(data, cases, settings, train_settings, runs.own, manifest, carried)
    answers.details["learning"] = _learning(runs.own / "metrics.csv")
    return answers


ARMS: Final[dict[Kind, Arm]] = {
    "popularity": popularity,
    "itemcf": item_cf,
    "ease": ease,
    "sasrec": sasrec,
    "recommender": recommender,
    "continued": continued,
    "rere": rere,
}
TRAINED: Final[tuple[Kind, ...]] = ("recommender", "continued", "rere")
"""Those that have a training run."""


def _only(settings: Mapping[str, Any], *allowed: str) -> None:
    for name, value in settings.items():
        if name not in allowed:
            raise ConfigError("unknown setting of a method", field=name, value=value, remedy=f"one of {allowed}")


def _scored(scorer: Scorer, cases: Cases, details: dict[str, Any]) -> Answers:
    return Answers(answer_by_scores(scorer, cases.histories, cases.targets), details)


def _answered(
    data: PreparedData,
    cases: Cases,
    settings: Mapping[str, Any],
    train_settings: TrainSettings,
    run: Path,
    manifest: Mapping[str, Any],
    carried: float,
    fitted: Mapping[str, Any] | None = None,
) -> Answers:
    """The cases answered with the weights of a finished run, and the fusion fitted to it where there is one."""
    fused = fitted is not None and "ceiling" not in settings
    decoder = _decoder(data, train_settings, run, settings.get("decoder"), fused=fused)
    decoder, beside = _beside(decoder, data, settings, run)
    before = time.process_time()
    beam = settings.get("beam", TOP)
    views = {view: answer_by_decoder(decoder, cases.histories, cases.targets, beam=beam, view=view) for view in VIEWS}
    details = {
        "steps": manifest["steps"],
        "best_step": manifest["best_step"],
        "parameters": manifest["parameters"],
        "valid.ndcg@10": manifest["metrics"]["valid.ndcg@10"],
        "train_cpu_seconds": manifest["cpu_seconds"],
        "decode_cpu_seconds": round(time.process_time() - before, 3),
        **beside,
    }
    if fitted is not None:
        told = ("weight", "second", "validation", "entries", "cpu_seconds")
        details["fusion"] = {name: fitted[name] for name in told if name in fitted}
    return Answers(views, details, carried)


def _beside(
    decoder: Decoder, data: PreparedData, settings: Mapping[str, Any], run: Path
) -> tuple[Decoder, dict[str, Any]]:
    """The decoder with what the settings lay beside it, and what was chosen."""
    from benchmarks.quality_beside import correct_popularity, fuse_dense
    from recsys.decoding.trie import SidTrie
    from training.fusion.settings import FusionSettings

    trie, beam = SidTrie.build(data.codes, data.codebook_sizes), settings.get("beam", TOP)
    if "popularity" in settings:
        decoder, chosen = correct_popularity(decoder, trie, data, settings["popularity"]["weights"], beam=beam)
        return decoder, {"popularity": chosen}
    if "ceiling" in settings:
        fusion = FusionSettings.parse(dict(settings["fusion"]))
        decoder, chosen = fuse_dense(decoder, trie, data, run, fusion, settings["ceiling"])
        return decoder, {"ceiling": chosen}
    return decoder, {}


def _learning(log: Path) -> dict[str, float]:
    """Of a run's metrics.csv: the start's validation, and the means of what was logged at every later evaluation."""
    with log.open(newline="") as file:
        first, *rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    means = {name: float(np.mean([row[name] for row in rows])) for name in first if name != "step"}
    return {"start.ndcg@10": first["valid.ndcg@10"], "last.kl": rows[-1]["kl"], **means}


def _decoder(data: PreparedData, settings: Any, run: Path, name: str | None, *, fused: bool = False) -> Decoder:
    from recsys.bundle.fusion import FUSION, load_fusion
    from recsys.bundle.loading import load_model, load_second
    from recsys.decoding.building import build_decoder
    from recsys.decoding.trie import SidTrie
    from training.recommender.trainer import item_features

    features = item_features(data, settings)
    model = load_model(run / "model", features, data.codebook_sizes)
    trie = SidTrie.build(data.codes, data.codebook_sizes)
    fusion = (
        load_fusion(run / FUSION, partial(load_second, features=features, codebook_sizes=data.codebook_sizes))
        if fused
        else None
    )
    return build_decoder(model, trie, name=name, prior=data.train_counts, fusion=fusion)
