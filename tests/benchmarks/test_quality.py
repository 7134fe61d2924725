from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.quality import Quality
from benchmarks.quality_settings import DatasetSettings, MethodSettings, QualitySettings
from recsys.datasets.prepared import PreparedData
from recsys.errors import DataError
from recsys.evaluation.metrics import recall

if TYPE_CHECKING:
    from pathlib import Path


def _quality(work: Path, said: list[str], **methods: MethodSettings) -> Quality:
    settings = QualitySettings(
        seeds=[1], replicates=50, datasets={"ring": DatasetSettings(source="ring")}, methods=methods,
        default_methods=list(methods),
    )  # fmt: skip
    return Quality(settings, work, work, said.append)


def test_arms_are_measured_once_and_compared(prepared: Path) -> None:
    work = prepared.parent.parent.parent
    said: list[str] = []
    ease = MethodSettings(kind="ease", title="EASE", settings={"regularisations": [10], "decays": [0.5]})
    itemcf = MethodSettings(kind="itemcf", title="item-CF", against=["ease"])
    quality = _quality(work, said, ease=ease, itemcf=itemcf)
    figures, results = quality.measure_prepared("ring", prepared, ["ease", "itemcf"], preparation_seconds=30.0)
    named = {figure.name: figure for figure in figures}
    assert quality.failures == []
    assert [line.split(",")[0] for line in said] == ["ring: ease", "ring: itemcf"]

    data = PreparedData.load(prepared)
    _, _, targets = data.sequences.targets("test")
    answered = results["ease"][0].views["masked"]
    assert named["quality.ring.ease.masked.recall@10"].value == pytest.approx(recall(answered.ranks, 10).mean())
    assert named["quality.ring.ease.masked.recall@10"].n == len(targets) == 50
    assert named["quality.ring.itemcf.masked.invalid@50"].value == 0.0
    assert named["quality.ring.preparation.cpu_minutes"].value == 0.5
    difference = named["quality.ring.itemcf.masked.ndcg@10.minus.ease"]
    assert difference.value == pytest.approx(
        named["quality.ring.itemcf.masked.ndcg@10"].value - named["quality.ring.ease.masked.ndcg@10"].value
    )
    assert difference.low is not None
    assert difference.high is not None
    assert difference.low <= difference.value <= difference.high
    assert named["quality.ring.itemcf.cpu_minutes"].value > 0

    marks = sorted((work / "arms").rglob("result.json"))
    times = [mark.stat().st_mtime_ns for mark in marks]
    again, _ = quality.measure_prepared("ring", prepared, ["ease", "itemcf"], preparation_seconds=30.0)
    assert again == figures
    assert [mark.stat().st_mtime_ns for mark in marks] == times


def test_a_failed_arm_is_told_and_the_others_stand(prepared: Path) -> None:
    work = prepared.parent.parent.parent
    wrong = MethodSettings(kind="ease", title="wrong", settings={"lambda": 1})
    quality = _quality(work, [], wrong=wrong)
    figures, results = quality.measure_prepared("ring", prepared, ["wrong"], preparation_seconds=0.0)
    assert results == {}
    assert [figure.name for figure in figures] == ["quality.ring.preparation.cpu_minutes"]
    (failure,) = quality.failures
    assert failure.startswith("ring wrong seed 1")
    assert "unknown setting of a method" in failure


def test_an_absent_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not there"):
        _quality(tmp_path, [], good=MethodSettings(kind="popularity", title="p")).prepare("ring")
