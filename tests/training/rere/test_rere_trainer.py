"""The trainer from a finished run to the next."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from recsys.bundle import Registry, load_decoder
from recsys.decoding.eligibility import Eligibility
from recsys.errors import ConfigError, DataError
from recsys.storage import read_json
from training.recommender.settings import TrainSettings
from training.recommender.trainer import train
from training.rere.settings import RereSettings
from training.rere.trainer import RereTrainer, train_rere
from windfire.commands import publish
from windfire.commands import train as commands

if TYPE_CHECKING:
    from recsys.datasets.prepared import PreparedData

SMALL: dict[str, Any] = {
    "steps": 6,
    "batch": 8,
    "group": 4,
    "evaluate_every": 2,
    "evaluate_users": 30,
    "patience": 99,
    "warmup_steps": 2,
    "learning_rate": 1e-3,
    "threads": 1,
}


def settings(**changes: Any) -> RereSettings:
    return RereSettings.parse({**SMALL, **changes})


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "weights.safetensors")


def logged(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "cpu_seconds"} for row in csv.DictReader(file)]


def test_reinforcement_raises_hits_and_validation(sft_run: Path, tiny_data: PreparedData, tmp_path: Path) -> None:
    chosen = settings(steps=60, batch=32, evaluate_every=30, evaluate_users=120, learning_rate=3e-3, clip=1.0)
    manifest = train_rere(sft_run, tiny_data, chosen, tmp_path / "run", seed=1)
    first, middle, last = logged(tmp_path / "run")
    assert float(last["valid.ndcg@10"]) > float(first["valid.ndcg@10"]) + 0.02
    assert float(last["hit_rate"]) > float(middle["hit_rate"])
    assert float(last["kl"]) > 0
    assert float(last["diversity"]) == 1
    assert manifest["metrics"]["valid.ndcg@10"] == pytest.approx(float(last["valid.ndcg@10"]), rel=1e-4)


@pytest.mark.parametrize(
    "switch",
    [
        {"rollout": "independent", "reward": "rule", "loss": "dapo"},
        {"rollout": "dynamic", "rank_normaliser": "paper", "without_hit": "keep", "loss": "gspo", "updates": 3},
        {"hint_levels": 2, "kl": "exact", "kl_weight": 0.1, "target_weight": 0.5, "exclude_history": True},
        {"keep_idle": False, "kl_weight": 0.0},
    ],
    ids=lambda switch: "-".join(map(str, switch)),
)
def test_every_switch_changes_the_weights(
    switch: dict[str, Any], sft_run: Path, tiny_data: PreparedData, tmp_path: Path
) -> None:
    trainer = RereTrainer(sft_run, tiny_data, settings(steps=2, batch=32, **switch), tmp_path / "run", seed=1)
    trainer.run()
    before, moved = weights(sft_run), load_file(tmp_path / "run" / "checkpoint.safetensors")
    assert not torch.equal(moved["model/head.item_output.weight"], before["head.item_output.weight"])
    assert all(torch.isfinite(moved[f"model/{name}"]).all() for name in before)
    assert trainer.progress.step == 2


def test_updates_move_the_policy_and_leave_the_reference(
    sft_run: Path, tiny_data: PreparedData, tmp_path: Path
) -> None:
    trainer = RereTrainer(sft_run, tiny_data, settings(batch=32), tmp_path / "run", seed=1)
    trainer._step()
    start = weights(sft_run)
    moved = [name for name, value in trainer.policy.model.state_dict().items() if not torch.equal(value, start[name])]
    assert {"head.item_output.weight", "trunk.start", "head.outputs.0.weight"} <= set(moved)
    reference = trainer.reference.model.state_dict()
    assert all(torch.equal(value, start[name]) for name, value in reference.items())


def test_idle_groups_may_be_left_out_of_the_update(sft_run: Path, tiny_data: PreparedData, tmp_path: Path) -> None:
    """Without a divergence they only dilute the mean; where all are idle nothing moves."""
    dropped = RereTrainer(sft_run, tiny_data, settings(keep_idle=False, reward_noise=0.0), tmp_path / "run", seed=1)
    dropped._step()
    start = weights(sft_run)
    assert 0 < dropped.measured["zero_advantage"][0] < 1
    assert not torch.equal(dropped.policy.model.state_dict()["trunk.start"], start["trunk.start"])
    targets = settings(keep_idle=False, reward="rank_only", rollout="independent", group=2, batch=1)
    silent = RereTrainer(sft_run, tiny_data, targets, tmp_path / "other", seed=1)
    for step in range(12):
        silent.progress.step = step
        silent._step()
    idle = silent.measured["zero_advantage"]
    assert len(idle) == 12
    assert 0 < len(silent.measured["loss"]) == idle.count(0.0) < 12


class _Stopped(Exception):  # noqa: N818 - not an error
    pass


def test_an_interrupted_run_ends_bit_for_bit_the_same(sft_run: Path, tiny_data: PreparedData, tmp_path: Path) -> None:
    chosen = settings(rollout="dynamic", hint_levels=1, reward_noise=0.2, updates=2, final_rate=0.1)
    whole = train_rere(sft_run, tiny_data, chosen, tmp_path / "whole", seed=4)
    cut = RereTrainer(sft_run, tiny_data, chosen, tmp_path / "cut", seed=4)
    step = cut._step

    def stepped() -> None:
        if cut.progress.step == 5:
            raise _Stopped
        step()

    cut._step = stepped  # type: ignore[method-assign]
    with pytest.raises(_Stopped):
        cut.run()
    torch.manual_seed(999)
    resumed = train_rere(sft_run, tiny_data, chosen, tmp_path / "cut", seed=4)
    assert resumed["metrics"] == whole["metrics"]
    one, two = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "cut"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert logged(tmp_path / "whole") == logged(tmp_path / "cut")
    assert train_rere(sft_run, tiny_data, chosen, tmp_path / "cut", seed=4) == resumed  # not repeated
    with pytest.raises(DataError, match="checkpoint belongs to other data"):
        train_rere(sft_run, tiny_data, settings(learning_rate=1e-5), tmp_path / "cut", seed=4)


def test_a_run_that_never_gets_better_is_its_start(sft_run: Path, tiny_data: PreparedData, tmp_path: Path) -> None:
    idle = settings(learning_rate=1e-12, steps=50, evaluate_every=1, patience=2)
    manifest = train_rere(sft_run, tiny_data, idle, tmp_path / "run", seed=1)
    assert (manifest["steps"], manifest["best_step"], manifest["stopped_early"]) == (2, 0, True)
    start, found = weights(sft_run), weights(tmp_path / "run")
    assert all(torch.equal(start[name], found[name]) for name in start)


def test_processor_time_ends_a_run_with_an_evaluation(sft_run: Path, tiny_data: PreparedData, tmp_path: Path) -> None:
    manifest = train_rere(sft_run, tiny_data, settings(cpu_minutes=1e-9), tmp_path / "run", seed=1)
    assert manifest["steps"] == 1
    assert [row["step"] for row in logged(tmp_path / "run")] == ["0", "1"]


def test_settings_that_cannot_be_are_named(sft_run: Path, tiny_data: PreparedData, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reinforcement learning: Extra inputs"):
        RereSettings.parse({"gruop": 3})
    with pytest.raises(ConfigError, match="has 3 codes"):
        RereTrainer(sft_run, tiny_data, settings(hint_levels=4), tmp_path, seed=1)
    with pytest.raises(DataError, match="no finished run"):
        train_rere(tmp_path, tiny_data, settings(), tmp_path / "run", seed=1)


def test_the_clip_is_higher_above_for_dapo() -> None:
    assert settings(loss="grpo").ratio_clip == (0.2, 0.2)
    assert settings(loss="dapo").ratio_clip == (0.2, 0.28)
    assert settings(loss="gspo", clip_low=0.1, clip_high=0.3).ratio_clip == (0.1, 0.3)


def test_the_command_writes_a_run_that_is_published(tiny_work: Path, tmp_path: Path) -> None:
    from recsys.datasets.prepared import PreparedData

    small = {"model": {"d_model": 16, "layers": 1, "heads": 2, "max_history": 8}, "teacher": {"kind": "none"}}
    sft = TrainSettings.parse({**small, "steps": 4, "batch_tokens": 128, "bf16": False, "threads": 1})
    train(PreparedData.load(tiny_work), sft, tmp_path / "sft", seed=1)
    config = tmp_path / "rere.yaml"
    config.write_text(settings(steps=2).model_dump_json())
    paths = ["--data", str(tiny_work), "--run", str(tmp_path / "sft"), "--out", str(tmp_path / "rere")]
    answer = CliRunner().invoke(commands.app, ["rere", *paths, "--config", str(config)])
    assert answer.exit_code == 0, answer.output
    assert "2 steps" in answer.output
    manifest = read_json(tmp_path / "rere" / "manifest.json")
    assert manifest["settings"]["rere"]["group"] == 4
    assert manifest["settings"]["model"]["d_model"] == 16
    registry = tmp_path / "registry"
    arguments = ["--registry", str(registry), "--run", str(tmp_path / "rere"), "--data", str(tiny_work)]
    published = CliRunner().invoke(publish.app, arguments)
    assert published.exit_code == 0, published.output
    bundle = Registry(registry).open_current()
    histories = [np.array([1, 2])]
    found = load_decoder(bundle).decode(histories, k=5, beam=10, eligibility=Eligibility(None, histories))
    assert len(found.ranked[0].items) == 5
    again = train_rere(bundle.path, PreparedData.load(tiny_work), settings(steps=1), tmp_path / "further", seed=1)
    assert again["settings"]["rere"]["steps"] == 1


def test_the_commented_settings_are_the_defaults() -> None:
    config = Path(__file__).parents[3] / "config" / "rere.yaml"
    assert RereSettings.load(config) == RereSettings()
    assert set(yaml.safe_load(config.read_text())) == set(RereSettings.model_fields)
