from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.quality_figures import ArmResult, advice, dataset_figures
from benchmarks.quality_settings import DatasetSettings, MethodSettings, QualitySettings
from recsys.datasets.prepared import PreparedData
from recsys.evaluation.answers import Answered
from recsys.evaluation.metrics import MISSED

NUMBER = r"[+-]\d\.\d{4}"


def _arm(ranks: npt.NDArray[np.int64], seed: int = 1) -> ArmResult:
    answered = Answered(ranks, np.zeros((len(ranks), 50), dtype=np.int32))
    return ArmResult({"masked": answered, "unmasked": answered}, 1.0, {}, seed)


def _ranks(share: float, seed: int, cases: int = 2000) -> npt.NDArray[np.int64]:
    """An exact share of hits, at places that the seed shuffles."""
    hit = np.arange(cases) < share * cases
    return np.where(np.random.default_rng(seed).permutation(hit), 1, MISSED).astype(np.int64)


def test_the_simplest_of_equals_is_enough() -> None:
    results = {"nezha": [_arm(_ranks(0.305, 1))], "ease": [_arm(_ranks(0.3, 2))], "popularity": [_arm(_ranks(0.1, 3))]}
    text = advice("your log", results, replicates=200)
    assert text.startswith("On your log ease is enough for you: NDCG@10 0.3")
    assert re.search(rf"nezha's {NUMBER} \[{NUMBER}, {NUMBER}\] is within chance\.$", text)


def test_a_clear_winner_is_named_with_its_lead() -> None:
    results = {"popularity": [_arm(_ranks(0.1, 3))], "ease": [_arm(_ranks(0.3, 2))], "nezha": [_arm(_ranks(0.5, 1))]}
    text = advice("your log", results, replicates=200)
    assert text.startswith("On your log nezha is")
    assert re.search(rf", {NUMBER} \[{NUMBER}, {NUMBER}\] over ease, the next\.$", text)


def test_a_single_change_is_measured_under_the_seeds_that_both_have(prepared: Path) -> None:
    methods = {
        "whole": MethodSettings(kind="recommender", title="w"),
        "changed": MethodSettings(kind="recommender", title="c", against=["whole", "ease"], change_of="whole"),
        "ease": MethodSettings(kind="ease", title="e"),
    }
    settings = QualitySettings(
        seeds=[1, 2], replicates=20, datasets={"ring": DatasetSettings()}, methods=methods, default_methods=[]
    )
    same, worse = (_ranks(share, 1, cases=50) for share in (0.5, 0.1))
    results = {
        "whole": [_arm(worse, 1), _arm(same, 2)],
        "changed": [_arm(same, 2)],  # the weights of `whole` under its second seed
        "ease": [_arm(worse, 1)],
    }
    found = dataset_figures("ring", PreparedData.load(prepared), results, settings, 0.0)
    named = {figure.name: figure.value for figure in found}
    assert named["quality.ring.changed.masked.recall@10.minus.whole"] == 0.0
    assert named["quality.ring.changed.masked.recall@10.minus.ease"] > 0.3


def test_nothing_to_compare_is_said() -> None:
    assert "nothing else was measured" in advice("x", {"ease": [_arm(_ranks(0.3, 2))]}, replicates=20)
    assert "no test case" in advice("x", {"ease": [_arm(_ranks(0.3, 2, cases=0))]}, replicates=20)
    assert "Nothing could be measured" in advice("x", {}, replicates=20)  # every arm failed
