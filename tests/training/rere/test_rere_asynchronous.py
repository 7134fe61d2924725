"""ReRe over processes: the bits of one process, whoever is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from typer.testing import CliRunner

from recsys.datasets.prepared import PreparedData
from recsys.errors import ConfigError, DataError
from recsys.storage import read_json
from training.recommender.settings import TrainSettings
from training.recommender.trainer import train
from training.rere.asynchronous import train_asynchronously
from training.rere.draws import noise_generator
from training.rere.groups import Groups, joined
from training.rere.judge import RereReward
from training.rere.learning import rewarded
from training.rere.settings import RereSettings
from training.rere.start import Start
from training.rere.trainer import RereTrainer, train_rere
from windfire.commands import publish
from windfire.commands import train as commands

if TYPE_CHECKING:
    from collections.abc import Callable

    from training.rl.controller import Controller

SMALL: dict[str, Any] = {
    "steps": 6,
    "batch": 8,
    "chunk": 4,
    "group": 4,
    "rollout": "dynamic",
    "hint_levels": 1,
    "reward_noise": 0.2,
    "updates": 2,
    "evaluate_every": 2,
    "evaluate_users": 30,
    "patience": 99,
    "warmup_steps": 2,
    "learning_rate": 1e-2,
    "final_rate": 0.1,
    "threads": 1,
}


def settings(**changes: Any) -> RereSettings:
    return RereSettings.parse({**SMALL, **changes})


def killing(role: str, version: int) -> Callable[[Controller], None]:
    def act(controller: Controller) -> None:
        for pid in controller.pids(role)[:1] * (
            controller.schedule.version == version and not controller.report.deaths
        ):
            os.kill(pid, signal.SIGKILL)

    return act


def rows_of(run: Path) -> list[str]:
    """The metrics without the processor time, which is the last column."""
    return [line.rpartition(",")[0] for line in (run / "metrics.csv").read_text().splitlines()]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def plain_loop(source: Path, work: Path, chosen: RereSettings, out: Path, *, seed: int) -> dict[str, torch.Tensor]:
    """The last weights of pinned training, without processes."""
    data = PreparedData.load(work)
    trainer, old = RereTrainer(source, data, chosen, out, seed=seed), Start.load(source, data, chosen, seed=seed)
    weights = [trainer._weights()]
    for step in range(chosen.steps):
        old.policy.model.load_state_dict(weights[max(0, step - chosen.alpha)])
        groups = joined([old.roll_out(step, block) for block in range(chosen.blocks)])
        trainer.learn(rewarded(groups, chosen, noise_generator(seed, step, chosen.blocks)))
        trainer.progress.step += 1
        weights.append(trainer._weights())
    return weights[-1]


@pytest.fixture(scope="module")
def source(tiny_work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recommender that has seen little. Read only."""
    out = tmp_path_factory.mktemp("sft") / "run"
    small = {"model": {"d_model": 16, "layers": 1, "heads": 2, "max_history": 8}, "teacher": {"kind": "none"}}
    sft = TrainSettings.parse({**small, "steps": 4, "batch_tokens": 128, "bf16": False, "threads": 1})
    train(PreparedData.load(tiny_work), sft, out, seed=1)
    return out


def test_alpha_0_is_the_run_of_one_process_bit_for_bit(source: Path, tiny_work: Path, tmp_path: Path) -> None:
    data = PreparedData.load(tiny_work)
    one = train_rere(source, data, settings(), tmp_path / "one", seed=3)
    chosen = settings(workers=2)
    two = train_asynchronously(source, tiny_work, chosen, tmp_path / "two", seed=3, on_step=killing("rollout", 3))
    before, after = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("one", "two/rl"))
    del after["progress"]
    assert same(before, after)  # weights, the best ones, the optimiser
    assert not torch.equal(after["model/trunk.start"], load_file(source / "model/weights.safetensors")["trunk.start"])
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "two")
    assert (one["metrics"], one["best_step"], one["steps"]) == (two["metrics"], two["best_step"], two["steps"])
    assert one["fingerprint"] == two["fingerprint"]
    report = read_json(tmp_path / "two" / "rl" / "report.json")
    assert report["deaths"] == {"rollout": 1}
    assert report["staleness"] == {"0": 12}
    # a finished run is not repeated, whoever made it; what is left of it is not continued by the other kind
    assert train_rere(source, data, settings(), tmp_path / "two", seed=3) == two
    (tmp_path / "two" / "manifest.json").unlink()
    with pytest.raises(DataError, match="over several processes"):
        train_rere(source, data, settings(), tmp_path / "two", seed=3)
    (tmp_path / "one" / "manifest.json").unlink()
    with pytest.raises(DataError, match="in one process"):
        train_asynchronously(source, tiny_work, chosen, tmp_path / "one", seed=3)


@pytest.mark.faults
def test_a_killed_learner_and_a_stopped_run_end_at_the_bits_of_stale_training(
    source: Path, tiny_work: Path, tmp_path: Path
) -> None:
    chosen = settings(workers=1, alpha=1)
    kill = killing("learner", 3)
    seen: list[dict[str, int]] = []

    def kill_and_stop(controller: Controller) -> None:
        kill(controller)
        if controller.schedule.version == 5:
            seen.append(dict(controller.report.deaths))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_asynchronously(source, tiny_work, chosen, tmp_path / "run", seed=3, on_step=kill_and_stop)
    train_asynchronously(source, tiny_work, chosen, tmp_path / "run", seed=3)
    expected = plain_loop(source, tiny_work, chosen, tmp_path / "plain", seed=3)
    found = load_file(tmp_path / "run" / "rl" / "checkpoint.safetensors")
    assert same({name: found[f"model/{name}"] for name in expected}, expected)
    fresh = plain_loop(source, tiny_work, settings(), tmp_path / "fresh", seed=3)
    assert not same(expected, fresh)  # the age of the weights does matter
    report = read_json(tmp_path / "run" / "rl" / "report.json")
    assert seen == [{"learner": 1}]
    assert (report["first_version"], report["staleness"]) == (4, {"1": 4})  # blocks
    assert [row.split(",")[0] for row in rows_of(tmp_path / "run")] == ["step", "0", "2", "4", "6"]
    weights = sorted(path.name for path in (tmp_path / "run" / "rl" / "weights").iterdir())
    assert weights == ["5.safetensors", "6.safetensors"]


def test_the_command_stops_early_and_its_run_is_published(source: Path, tiny_work: Path, tmp_path: Path) -> None:
    config, out = tmp_path / "rere.yaml", tmp_path / "run"
    chosen = settings(workers=1, alpha=1, pinned=False, steps=50, patience=2, learning_rate=1e-12, evaluate_every=1)
    config.write_text(chosen.model_dump_json())
    paths = ["--data", str(tiny_work), "--run", str(source), "--out", str(out)]
    answer = CliRunner().invoke(commands.app, ["rere", *paths, "--config", str(config), "--seed", "2"])
    assert answer.exit_code == 0, answer.output
    assert "2 steps, best at 0" in answer.output
    manifest = read_json(out / "manifest.json")
    assert manifest["stopped_early"]
    assert manifest["cpu_seconds"] > 0
    assert same(load_file(out / "model/weights.safetensors"), load_file(source / "model/weights.safetensors"))
    arguments = ["--registry", str(tmp_path / "registry"), "--run", str(out), "--data", str(tiny_work)]
    published = CliRunner().invoke(publish.app, arguments)
    assert published.exit_code == 0, published.output


@given(st.integers(0, 99), st.integers(0, 99), st.sampled_from([1, 2, 4]), st.floats(0, 1))
def test_judging_block_by_block_is_judging_the_batch(seed: int, step: int, blocks: int, noise: float) -> None:
    chosen = settings(chunk=8 // blocks, reward_noise=noise)
    rng = np.random.default_rng([seed, step, 1])
    targets, items = rng.integers(6, size=8), np.stack([rng.permutation(6)[:4] for _ in range(8)])
    nothing, paths = np.zeros((8, 4), np.float32), np.zeros((8, 4, 3), np.float32)
    groups = Groups(np.zeros((8, 2), np.int64), targets, items, np.zeros(8, np.int64), paths, nothing, nothing)
    whole = rewarded(groups, chosen, noise_generator(seed, step, blocks))
    judge = RereReward({"judging": chosen.judging, "seed": seed, "blocks": blocks})
    order = rng.permutation(blocks)
    rows = np.arange(8).reshape(blocks, -1)[order]
    found = judge.score({"prompt_ids": step * blocks + order, "items": items[rows], "targets": targets[rows]})
    assert np.array_equal(found["rewards"], whole.rewards[rows])
    assert np.array_equal(found["advantages"], whole.advantages[rows])


def test_settings_of_processes_that_cannot_be_are_named(sft_run: Path, tiny_data: PreparedData, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="chunk 3 does not divide the batch of 8"):
        settings(chunk=3)
    with pytest.raises(ConfigError, match="alpha 1 needs workers"):
        settings(alpha=1)
    with pytest.raises(ConfigError, match="read the work directory"):
        train_rere(sft_run, tiny_data, settings(workers=1), tmp_path / "run", seed=1)
    with pytest.raises(ConfigError, match="needs a rollout process"):
        train_asynchronously(sft_run, tmp_path, settings(), tmp_path / "run", seed=1)


def test_the_number_of_workers_decides_nothing_and_their_age_does() -> None:
    usual = settings(chunk=None)
    assert settings(chunk=None, workers=3).decisive == usual.decisive
    others = [settings(workers=1, alpha=1), settings(workers=1, alpha=1, pinned=False), settings()]
    assert len({usual.decisive, *(other.decisive for other in others)}) == 4
