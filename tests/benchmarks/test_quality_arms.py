from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks.quality_arms import ARMS, Cases, Runs, recommender
from recsys.datasets.prepared import PreparedData
from recsys.errors import ConfigError
from recsys.evaluation.answers import VIEWS
from recsys.evaluation.lists import invalid_rate
from recsys.storage import read_json, write_json_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.quality_settings import Kind

TRAIN: dict[str, Any] = {
    "model": {"d_model": 16, "layers": 1, "heads": 2, "max_history": 8},
    "teacher": {"kind": "none"},
    "steps": 4,
    "evaluate_every": 2,
}
GRID = {"regularisations": [5.0], "decays": [0.5]}
FLAT = {**TRAIN, "model": {**TRAIN["model"], "shape": "flat"}}
RERE = {"steps": 2, "batch": 8, "group": 4, "evaluate_every": 1}
FUSION = {"weights": [0.5, 2.0], "neighbours": 5, "shrink": 1.0, "floor": 0.01}
SASREC = {"d_model": 8, "layers": 1, "heads": 1, "steps": 4, "evaluate_every": 2}
SETTINGS: list[tuple[Kind, dict[str, Any]]] = [
    ("popularity", {}),
    ("itemcf", {"shrinks": [1.0], "decays": [0.5]}),
    ("ease", GRID),
    ("sasrec", SASREC),
    ("recommender", {"train": TRAIN, "beam": 10}),
    ("recommender", {"train": FLAT, "decoder": "flat"}),
    ("recommender", {"train": TRAIN, "beam": 10, "decoder": "fused", "fusion": FUSION}),
    ("recommender", {"train": TRAIN, "beam": 10, "decoder": "fused", "fusion": FUSION, "second": FLAT}),
    ("recommender", {"train": TRAIN, "beam": 10, "popularity": {"weights": [-1.0, 1.0]}}),
    ("recommender", {"train": TRAIN, "beam": 10, "fusion": FUSION, "ceiling": GRID}),
    ("continued", {"train": TRAIN, "further": {**TRAIN, "steps": 2}, "beam": 24}),
    ("rere", {"train": TRAIN, "rere": RERE, "beam": 24}),
]


def _runs(prepared: Path) -> Runs:
    return Runs(prepared.parent / "run", prepared.parent / "start", prepared.parent / "second")


def test_the_training_of_a_second_model_is_counted(prepared: Path) -> None:
    data, runs = PreparedData.load(prepared), _runs(prepared)
    fusion = {**FUSION, "second": {"weights": [1.0]}}
    wanted = {"train": TRAIN, "beam": 24, "decoder": "fused", "fusion": fusion, "second": FLAT}
    first = recommender(data, Cases.of(data, 5), wanted, seed=1, runs=runs)
    again = recommender(data, Cases.of(data, 5), wanted, seed=1, runs=runs)
    assert list(again.details["fusion"]["validation"]["ndcg@10.second"]) == ["1"]
    assert again.details["fusion"] == first.details["fusion"]
    spent = read_json(prepared.parent / "second" / "manifest.json")["cpu_seconds"]
    assert again.carried_cpu_seconds >= spent > 0


@pytest.mark.parametrize(("kind", "settings"), SETTINGS)
def test_every_arm_answers_every_case_validly(prepared: Path, kind: Kind, settings: dict[str, Any]) -> None:
    data = PreparedData.load(prepared)
    cases = Cases.of(data, 40)
    answers = ARMS[kind](data, cases, settings, seed=1, runs=_runs(prepared))
    for view in VIEWS:
        assert answers.views[view].ranks.shape == (40,)
        assert invalid_rate(answers.views[view].lists, 24) == 0.0
    assert invalid_rate(answers.views["masked"].lists, 24, cases.histories) == 0.0
    # every item that is not in the history is listed: the catalogue is smaller than the list
    listed = (answers.views["masked"].lists >= 0).sum(axis=1)
    assert listed.tolist() == [24 - len(np.unique(history)) for history in cases.histories]


@pytest.mark.parametrize("kind", ["popularity", "itemcf", "ease", "sasrec", "recommender", "continued", "rere"])
def test_a_misspelt_setting_is_refused(prepared: Path, kind: Kind) -> None:
    data = PreparedData.load(prepared)
    with pytest.raises(ConfigError, match="unknown setting of a method"):
        ARMS[kind](data, Cases.of(data, None), {"lambda": 1}, seed=1, runs=_runs(prepared))


def test_a_finished_training_run_is_used_again_and_its_time_carried(prepared: Path) -> None:
    data, runs = PreparedData.load(prepared), _runs(prepared)
    cases = Cases.of(data, None)
    first = recommender(data, cases, {"train": TRAIN, "beam": 10}, seed=1, runs=runs)
    weights = (runs.own / "model" / "weights.safetensors").stat().st_mtime_ns
    second = recommender(data, cases, {"train": TRAIN, "beam": 10}, seed=1, runs=runs)
    assert (runs.own / "model" / "weights.safetensors").stat().st_mtime_ns == weights
    assert np.array_equal(first.views["masked"].ranks, second.views["masked"].ranks)
    assert second.carried_cpu_seconds > first.carried_cpu_seconds


def test_a_fusion_is_chosen_on_validation_and_counted(prepared: Path) -> None:
    data, runs = PreparedData.load(prepared), _runs(prepared)
    cases = Cases.of(data, None)
    plain = recommender(data, cases, {"train": TRAIN, "beam": 24}, seed=1, runs=runs)
    wanted = {"train": TRAIN, "beam": 24, "decoder": "fused", "fusion": FUSION}
    first = recommender(data, cases, wanted, seed=1, runs=runs)
    chosen = first.details["fusion"]
    values = chosen["validation"]["ndcg@10"]
    assert list(values) == ["0", "0.5", "2"]
    assert values[f"{chosen['weight']:g}"] == max(values.values()) > values["0"]
    # the next item on the ring is a neighbour of the last one
    assert first.views["masked"].ranks.mean() < plain.views["masked"].ranks.mean()
    weights = (runs.own / "fusion" / "items.npy").stat().st_mtime_ns
    manifest = read_json(runs.own / "manifest.json")  # of a training so long that what this process spends is nothing
    write_json_atomically(runs.own / "manifest.json", manifest | {"cpu_seconds": 1e6})
    again = recommender(data, cases, wanted, seed=1, runs=runs)
    assert (runs.own / "fusion" / "items.npy").stat().st_mtime_ns == weights
    assert again.details["fusion"] == chosen
    assert 1e6 - 1_000 < again.carried_cpu_seconds <= 1e6 + chosen["cpu_seconds"]


@pytest.mark.parametrize("position", [-2, -1])
def test_what_goes_on_from_a_run_leaves_it_and_counts_it(prepared: Path, position: int) -> None:
    data, runs = PreparedData.load(prepared), _runs(prepared)
    kind, settings = SETTINGS[position]
    start = recommender(data, Cases.of(data, 5), {"train": TRAIN}, seed=1, runs=Runs(runs.start, runs.start))
    weights = (runs.start / "model" / "weights.safetensors").read_bytes()
    answers = ARMS[kind](data, Cases.of(data, 5), settings, seed=1, runs=runs)
    assert (runs.start / "model" / "weights.safetensors").read_bytes() == weights
    spent = start.details["train_cpu_seconds"] + answers.details["train_cpu_seconds"]
    assert answers.carried_cpu_seconds == pytest.approx(start.details["train_cpu_seconds"], abs=0.5 * spent)
    assert answers.details["valid.ndcg@10"] >= start.details["valid.ndcg@10"]


def test_the_learning_of_reinforcement_is_told(prepared: Path) -> None:
    data = PreparedData.load(prepared)
    answers = ARMS["rere"](data, Cases.of(data, 5), SETTINGS[-1][1], seed=1, runs=_runs(prepared))
    learning = answers.details["learning"]
    assert 0 < learning["hit_rate"] <= 1
    assert learning["diversity"] == 1.0
    assert 0 <= learning["zero_advantage"] <= 1


def test_cases_are_spread_over_the_test_part(prepared: Path) -> None:
    data = PreparedData.load(prepared)
    _, histories, targets = data.sequences.targets("test")
    assert np.array_equal(Cases.of(data, None).targets, targets)
    assert np.array_equal(Cases.of(data, 99).targets, targets)
    few = Cases.of(data, 2)
    assert few.targets.tolist() == [targets[0], targets[-1]]
    assert np.array_equal(few.histories[1], histories[-1])
