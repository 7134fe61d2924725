from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from benchmarks.figures import Figure, Report
from benchmarks.rere_speed import SpeedSettings, rollout_figures, training_figures
from benchmarks.tables import render
from recsys.datasets.prepared import PreparedData
from recsys.errors import ConfigError, DataError
from training.recommender.settings import TrainSettings
from training.recommender.trainer import train
from windfire.commands import bench as commands

if TYPE_CHECKING:
    from pathlib import Path

SMALL: dict[str, Any] = {
    "seed": 1, "group": 4, "batch": 3, "rounds": 2, "slow_rounds": 1, "threads": 1, "backbone": "qwen3",
    "seeds": [1], "alphas": [1],
    "train": {"steps": 2, "batch": 4, "group": 4, "evaluate_every": 1, "evaluate_users": 10, "learning_rate": 1e-2},
}  # fmt: skip


def made(work: Path, out: Path, **model: Any) -> Path:
    shape = {"d_model": 16, "layers": 1, "heads": 2, "max_history": 8, **model}
    sft = {"model": shape, "teacher": {"kind": "none"}, "steps": 2, "batch_tokens": 64, "bf16": False, "threads": 1}
    train(PreparedData.load(work), TrainSettings.parse(sft), out, seed=1)
    return out


def test_rollouts_of_every_method_are_counted(tiny_work: Path, tmp_path: Path) -> None:
    run, settings = made(tiny_work, tmp_path / "run"), SpeedSettings.model_validate(SMALL)
    figures = rollout_figures(run, PreparedData.load(tiny_work), settings)
    named = {figure.name.removeprefix("rere_speed.rollouts."): figure for figure in figures}
    for method, rounds in {"compact": 2, "head": 2, "beam": 2, "hf_generate": 1}.items():
        assert named[f"{method}.per_s"].n == rounds
        assert named[f"{method}.per_s"].value > 0
    once = named["hf_generate.ms"].value
    assert named["hf_generate.per_s"].value == pytest.approx(3 * 4 / (once / 1e3))
    assert named["beam.same_items"].value == 1
    assert "hf_generate.over_hf_generate" not in named


def test_trainings_are_compared_seed_by_seed(tiny_work: Path, tmp_path: Path) -> None:
    run, settings = made(tiny_work, tmp_path / "run"), SpeedSettings.model_validate(SMALL)
    said: list[str] = []
    figures = training_figures(run, tiny_work, settings, tmp_path / "work", say=said.append)
    value = {figure.name.removeprefix("rere_speed.train."): figure.value for figure in figures}
    assert len(said) == 2
    assert value["alpha1.speedup"] == pytest.approx(value["sync.seconds"] / value["alpha1.seconds"])
    assert value["alpha1.loop_speedup"] == pytest.approx(value["sync.loop_seconds"] / value["alpha1.loop_seconds"])
    assert value["sync.loop_seconds"] < value["sync.seconds"]
    assert value["sync.start_ndcg@10"] == value["alpha1.start_ndcg@10"]
    for arm in ("sync", "alpha1"):
        kept = max(value[f"{arm}.start_ndcg@10"], value[f"{arm}.last_ndcg@10"])
        assert value[f"{arm}.ndcg@10"] >= kept - 1e-6
    Report("windfire bench rere-speed", {}, [1], figures, "", {}).save(tmp_path / "rere_speed.json")
    lines = render("rere-speed-training", tmp_path).splitlines()
    assert lines[2].startswith("| one process, two threads |")
    assert lines[3].startswith("| two processes, alpha 1 |")


def test_the_table_of_rollouts_is_in_times_of_generate(tmp_path: Path) -> None:
    assert "bench rere-speed --run RUN" in render("rere-speed", tmp_path)
    stem = "rere_speed.rollouts"
    figures = [
        Figure(f"{stem}.compact.per_s", 6400.4, "rollouts/s", 6000, 7000),
        Figure(f"{stem}.compact.ms", 40.0, "ms"),
        Figure(f"{stem}.compact.over_hf_generate", 32.04, "ratio"),
        Figure(f"{stem}.hf_generate.per_s", 200.0, "rollouts/s", 190, 210),
        Figure(f"{stem}.hf_generate.ms", 1280.0, "ms"),
    ]
    Report("windfire bench rere-speed", {}, [1], figures, "", {}).save(tmp_path / "rere_speed.json")
    lines = render("rere-speed", tmp_path).splitlines()
    assert lines[2] == "| ours, compact run | 6400 | 6000 to 7000 | 40.0 | 32.0 |"
    assert lines[3] == "| `generate` with a prefix function, token shape | 200 | 190 to 210 | 1280.0 | 1 |"
    with pytest.raises(DataError, match="no table"):
        render("rere-speed-else", tmp_path)


def test_what_cannot_be_measured_is_named(tiny_work: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gruop"):
        SpeedSettings.load(_written(tmp_path / "bad.yaml", SMALL | {"train": {"gruop": 3}}))
    token = made(tiny_work, tmp_path / "token", shape="token")
    with pytest.raises(ConfigError, match="compact shape"):
        rollout_figures(token, PreparedData.load(tiny_work), SpeedSettings.model_validate(SMALL))
    paths = ["--run", str(tmp_path / "none"), "--data", str(tiny_work), "--quick"]
    answer = CliRunner().invoke(commands.app, ["rere-speed", *paths])
    assert isinstance(answer.exception, DataError)


def _written(path: Path, value: dict[str, Any]) -> Path:
    import json

    path.write_text(json.dumps(value))
    return path


def test_the_committed_settings_and_their_quick_section_are_good() -> None:
    assert SpeedSettings.load().alphas == [0, 1, 2]
    assert SpeedSettings.load(quick=True).seeds == [1]
