from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks.quality_arms import ARMS, Cases, recommender
from recsys.datasets.prepared import PreparedData
from recsys.errors import ConfigError
from recsys.evaluation.answers import VIEWS
from recsys.evaluation.lists import invalid_rate

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.quality_settings import Kind

TRAIN: dict[str, Any] = {
    "model": {"d_model": 16, "layers": 1, "heads": 2, "max_history": 8},
    "teacher": {"kind": "none"},
    "steps": 4,
    "evaluate_every": 2,
}
SASREC = {"d_model": 8, "layers": 1, "heads": 1, "steps": 4, "evaluate_every": 2}
SETTINGS: list[tuple[Kind, dict[str, Any]]] = [
    ("popularity", {}),
    ("itemcf", {"shrinks": [1.0], "decays": [0.5]}),
    ("ease", {"regularisations": [5.0], "decays": [0.5]}),
    ("sasrec", SASREC),
    ("recommender", {"train": TRAIN, "beam": 10}),
    ("recommender", {"train": {**TRAIN, "model": {**TRAIN["model"], "shape": "flat"}}, "decoder": "flat"}),
]


@pytest.mark.parametrize(("kind", "settings"), SETTINGS)
def test_every_arm_answers_every_case_validly(prepared: Path, kind: Kind, settings: dict[str, Any]) -> None:
    data = PreparedData.load(prepared)
    cases = Cases.of(data, 40)
    answers = ARMS[kind](data, cases, settings, seed=1, out=prepared.parent / "run")
    for view in VIEWS:
        assert answers.views[view].ranks.shape == (40,)
        assert invalid_rate(answers.views[view].lists, 24) == 0.0
    assert invalid_rate(answers.views["masked"].lists, 24, cases.histories) == 0.0
    # every item that is not in the history is listed: the catalogue is smaller than the list
    listed = (answers.views["masked"].lists >= 0).sum(axis=1)
    assert listed.tolist() == [24 - len(np.unique(history)) for history in cases.histories]


@pytest.mark.parametrize("kind", ["popularity", "itemcf", "ease", "sasrec", "recommender"])
def test_a_misspelt_setting_is_refused(prepared: Path, kind: Kind) -> None:
    data = PreparedData.load(prepared)
    with pytest.raises(ConfigError, match="unknown setting of a method"):
        ARMS[kind](data, Cases.of(data, None), {"lambda": 1}, seed=1, out=prepared)


def test_a_finished_training_run_is_used_again_and_its_time_carried(prepared: Path) -> None:
    data, out = PreparedData.load(prepared), prepared.parent / "run"
    cases = Cases.of(data, None)
    first = recommender(data, cases, {"train": TRAIN, "beam": 10}, seed=1, out=out)
    weights = (out / "model" / "weights.safetensors").stat().st_mtime_ns
    second = recommender(data, cases, {"train": TRAIN, "beam": 10}, seed=1, out=out)
    assert (out / "model" / "weights.safetensors").stat().st_mtime_ns == weights
    assert np.array_equal(first.views["masked"].ranks, second.views["masked"].ranks)
    assert second.carried_cpu_seconds > first.carried_cpu_seconds


def test_cases_are_spread_over_the_test_part(prepared: Path) -> None:
    data = PreparedData.load(prepared)
    _, histories, targets = data.sequences.targets("test")
    assert np.array_equal(Cases.of(data, None).targets, targets)
    assert np.array_equal(Cases.of(data, 99).targets, targets)
    few = Cases.of(data, 2)
    assert few.targets.tolist() == [targets[0], targets[-1]]
    assert np.array_equal(few.histories[1], histories[-1])
