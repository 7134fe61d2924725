from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.figures import Report
from benchmarks.quality_figures import ArmResult
from benchmarks.quality_settings import DatasetSettings, MethodSettings, QualitySettings
from benchmarks.rere import CONFIG, differences, rere_figures
from benchmarks.rere_tables import rere_overview
from benchmarks.tables import render
from recsys.datasets.prepared import PreparedData
from recsys.errors import DataError
from recsys.evaluation.answers import Answered
from recsys.evaluation.intervals import draw_users
from recsys.evaluation.metrics import MISSED

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

CASES = 50
LEARNING = {
    "start.ndcg@10": 0.1, "last.kl": 0.02, "hit_rate": 0.4, "zero_advantage": 0.6, "diversity": 1.0, "reward": 0.1,
    "hinted": 0.0,
}  # fmt: skip


def _ranks(*hits: int) -> npt.NDArray[np.int64]:
    ranks = np.full(CASES, MISSED, dtype=np.int64)
    ranks[list(hits)] = 1
    return ranks


def _arm(ranks: npt.NDArray[np.int64], seed: int, **more: object) -> ArmResult:
    answered = Answered(ranks, np.zeros((CASES, 50), dtype=np.int32))
    details = {"train_cpu_seconds": 60.0, "steps": 250, "best_step": 50, "valid.ndcg@10": 0.11, **more}
    return ArmResult({"masked": answered, "unmasked": answered}, 1.0, details, seed)


def _differences(arms: list[ArmResult], controls: list[ArmResult]) -> dict[str, tuple[float, float | None]]:
    rng = np.random.default_rng(3)
    users = draw_users(CASES, rng=rng, replicates=400)
    found = differences("r", "sft", arms, controls, "masked", users, rng)
    return {figure.name: (figure.value, figure.high) for figure in found}


def test_what_seeds_have_in_common_is_no_uncertainty() -> None:
    # the seeds differ by far more than the arm does: only inside a seed is the gain seen for what it is
    controls = [_arm(_ranks(0, 1), 1), _arm(_ranks(*range(30)), 2)]
    arms = [_arm(_ranks(*range(30)), 2), _arm(_ranks(0, 1), 1)]
    assert set(_differences(arms, controls).values()) == {(0.0, 0.0), (0.0, None)}


def test_only_common_seeds_are_compared() -> None:
    controls = [_arm(_ranks(0), 1)]
    arms = [_arm(_ranks(0, 1), 1), _arm(_ranks(*range(40)), 2)]
    assert _differences(arms, controls)["r.recall@1.minus.sft"][0] == pytest.approx(1 / CASES)


def test_the_smallest_gain_is_2_8_standard_errors() -> None:
    arms = [_arm(_ranks(*range(10)), 1)]
    found = _differences(arms, [_arm(_ranks(), 1)])
    error = np.sqrt(0.2 * 0.8 / CASES)
    assert found["r.recall@1.detectable.sft"][0] == pytest.approx(2.8 * error, rel=0.15)


@pytest.fixture
def report(prepared: Path) -> Report:
    methods = {
        "sft": MethodSettings(kind="recommender", title="the training"),
        "rule": MethodSettings(kind="rere", title="rule reward", against=["sft", "absent"]),
    }
    settings = QualitySettings(
        seeds=[1, 2], replicates=20, datasets={"ring": DatasetSettings()}, methods=methods, default_methods=[]
    )
    results = {
        "sft": [_arm(_ranks(0), 1), _arm(_ranks(1), 2)],
        "rule": [_arm(_ranks(0, 2), 1, learning=LEARNING), _arm(_ranks(1, 2), 2, learning=LEARNING)],
    }
    figures = rere_figures("ring", PreparedData.load(prepared), results, settings)
    return Report("windfire bench rere", settings.model_dump(), [1, 2], figures, "", {})


def test_tables_show_arms_differences_and_learning(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path / "rere.json")
    assert render("rere-ring", tmp_path).splitlines()[3].startswith("| rule reward | .0400 | .0400 |")
    (line,) = render("rere-ring-differences", tmp_path).splitlines()[2:]
    assert line.startswith("| rule reward | the training | +.0200 (")
    learning = render("rere-ring-learning", tmp_path).splitlines()
    assert learning[2].endswith("| - | - | - | - | - |")
    assert learning[3] == "| rule reward | 1.0 | 250.0 | 50.0 | 0.1100 | 0.4000 | 0.6000 | 1.0000 | 0.0000 | 0.0200 |"
    assert len(rere_overview(report)) == 4
    with pytest.raises(DataError, match="no table has this name"):
        render("rere-ring-other", tmp_path)


def test_every_arm_on_top_is_compared_with_its_start() -> None:
    methods = QualitySettings.load(CONFIG).methods
    further = [method for method in methods.values() if method.kind != "recommender"]
    assert further
    assert all("sft" in method.against for method in further)
    assert {method.settings["beam"] for method in methods.values()} == {50}
