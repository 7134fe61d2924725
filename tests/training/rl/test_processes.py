"""Real processes: the weights of a plain loop, whoever is killed; and clear ends where there is no way on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from recsys.storage import read_json
from training.rl.controller import Controller, RunError, Settings, run
from training.rl.example import BanditLearner, BanditReward, BanditRollout
from training.rl.process import CHECKPOINT, weights_path
from training.rl.protocols import Part
from training.rl.schedule import Plan, PoisonedPromptError
from training.rl.wire import Arrays, unpack_arrays

if TYPE_CHECKING:
    from collections.abc import Callable

PROMPTS, ITEMS, GROUP = 10, 4, 6
PLAN = Plan(prompts=PROMPTS, epochs=6, batch=5, chunk=2, seed=7)  # 12 steps
OPTIONS: dict[str, Any] = {"prompts": PROMPTS, "items": ITEMS, "group": GROUP, "rate": 0.3}
SETTINGS = Settings(
    plan=PLAN,
    rollout=Part("training.rl.example:BanditRollout", OPTIONS),
    reward=Part("training.rl.example:BanditReward", OPTIONS),
    learner=Part("training.rl.example:BanditLearner", OPTIONS),
    rollout_workers=2,
)
# Workers that misbehave and a learner without torch, in a module that the children import.
FAULTY = """
import os, signal, time
import numpy as np
from training.rl.example import BanditReward, BanditRollout

class Learner:
    def __init__(self, options):
        self.options, self.logits = options, np.zeros((options["prompts"], options["items"]))
    @property
    def done(self):
        return self.logits.max() >= self.options.get("enough", np.inf)
    def step(self, batch):
        if self.options.get("broken"):
            raise ArithmeticError("not finite")
        self.logits = self.logits + len(batch["items"])
        return {}
    def weights(self):
        return {"logits": self.logits}
    state = weights
    def restore(self, state):
        self.logits = state["logits"]

class Poisoned(BanditRollout):
    def __init__(self, options):
        super().__init__(options)
        self.how = options["how"]
    def roll(self, prompt_ids, weights_version, seeds):
        if 3 in prompt_ids:
            {"raises": self.error, "dies": self.die, "hangs": lambda: time.sleep(600)}[self.how]()
        return super().roll(prompt_ids, weights_version, seeds)
    def error(self):
        raise ValueError("bad prompt")
    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)

class Loses(BanditReward):
    def score(self, groups):
        return {name: value[:-1] for name, value in super().score(groups).items()}

def stillborn(options):
    raise RuntimeError("no such model")

def dead(options):
    os._exit(1)
"""
KILLED = """
import json, os, signal, sys
from pathlib import Path
from training.rl.controller import Settings, run
from training.rl.protocols import Part
from training.rl.schedule import Plan
given = json.loads(sys.argv[1])
parts = {name: Part(**given.pop(name)) for name in ("rollout", "reward", "learner")}
def die(controller):
    if controller.schedule.version == 5:
        os.kill(os.getpid(), signal.SIGKILL)
run(Settings(plan=Plan(**given.pop("plan")), **parts, **given), Path(sys.argv[2]), die)
"""


def plain_loop(plan: Plan) -> list[Arrays]:
    """The weights of every version, without processes."""
    rollout, reward, learner = BanditRollout(OPTIONS), BanditReward(OPTIONS), BanditLearner(OPTIONS)
    weights = [learner.weights()]
    for version in range(plan.steps):
        positions = plan.batch_positions(version)
        rollout.load(weights[max(0, version - plan.alpha)])
        prompts = np.array([plan.prompt(position) for position in positions])
        groups = rollout.roll(prompts, version, np.array([plan.rollout_seed(position) for position in positions]))
        groups["prompt_ids"] = prompts
        learner.step(groups | reward.score(groups))
        weights.append(learner.weights())
    return weights


def final_weights(settings: Settings, directory: Path) -> bytes:
    path = weights_path(directory, settings.plan.steps)
    return unpack_arrays(path.read_bytes())["logits"].tobytes()


def kill_at(version: int, role: str, sign: int = signal.SIGKILL) -> Callable[[Controller], None]:
    def act(controller: Controller) -> None:
        for pid in controller.pids(role) * (controller.schedule.version == version and not controller.report.deaths):
            os.kill(pid, sign)

    return act


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "faulty_rl_parts.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(str(modules))
    return replace(SETTINGS, learner=Part("faulty_rl_parts:Learner", OPTIONS))


@pytest.mark.parametrize("alpha", [0, 1, 2])
def test_killed_rollout_workers_change_no_bit(alpha: int, tmp_path: Path) -> None:
    settings = replace(SETTINGS, plan=replace(PLAN, alpha=alpha))
    report = run(settings, tmp_path, kill_at(4, "rollout"))
    expected = plain_loop(settings.plan)[-1]["logits"]
    assert final_weights(settings, tmp_path) == expected.tobytes()
    assert np.abs(expected).max() > 0.5  # it did learn something
    assert report.deaths == {"rollout": 2}
    assert sum(report.staleness.values()) == PLAN.positions
    assert max(report.staleness) == alpha
    written = read_json(tmp_path / "report.json")
    assert (written["version"], written["settings"]["plan"]["alpha"]) == (PLAN.steps, alpha)
    assert report.metrics[11]["reward"] > report.metrics[0]["reward"]


def test_a_killed_learner_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    settings = replace(SETTINGS, plan=replace(PLAN, alpha=1), checkpoint_every=3)
    report = run(settings, tmp_path, kill_at(5, "learner"))
    assert report.deaths == {"learner": 1}
    assert final_weights(settings, tmp_path) == plain_loop(settings.plan)[-1]["logits"].tobytes()
    assert sum(report.staleness.values()) == PLAN.positions + 2 * PLAN.batch  # versions 3 and 4 were done twice


def test_a_killed_run_is_continued_to_the_same_bits(tmp_path: Path) -> None:
    settings = replace(SETTINGS, plan=replace(PLAN, alpha=2), checkpoint_every=2)
    command = [sys.executable, "-c", KILLED, json.dumps(asdict(settings)), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry or os.curdir for entry in sys.path)}
    assert subprocess.run(command, env=environment, timeout=60).returncode == -signal.SIGKILL
    report = run(settings, tmp_path)
    assert report.first_version == 4  # the last version before 5 that was kept
    assert final_weights(settings, tmp_path) == plain_loop(settings.plan)[-1]["logits"].tobytes()


def test_a_dead_reward_worker_loses_no_group(faulty: Settings, tmp_path: Path) -> None:
    report = run(faulty, tmp_path, kill_at(3, "reward"))
    assert report.deaths == {"reward": 1}
    assert sum(report.staleness.values()) == PLAN.positions


def test_a_stopped_worker_is_given_up(faulty: Settings, tmp_path: Path) -> None:
    # one alone: of two, the second may hold no work any more when it is stopped, and nobody waits for it then
    settings = replace(faulty, seconds=2.0, rollout_workers=1)
    report = run(settings, tmp_path, kill_at(2, "rollout", signal.SIGSTOP))
    assert report.deaths == {"rollout": 1}
    assert report.reissued > 0


def test_the_newest_weights_keep_the_bound(faulty: Settings, tmp_path: Path) -> None:
    report = run(replace(faulty, plan=replace(PLAN, alpha=2, pinned=False)), tmp_path)
    assert set(report.staleness) <= {0, 1, 2}
    assert sum(report.staleness.values()) == PLAN.positions


@pytest.mark.parametrize(
    ("how", "reason"), [("raises", "bad prompt"), ("dies", "process ended"), ("hangs", "did not answer in time")]
)
def test_a_poisoned_prompt_ends_the_run_with_its_name(faulty: Settings, how: str, reason: str, tmp_path: Path) -> None:
    part = Part("faulty_rl_parts:Poisoned", OPTIONS | {"how": how})
    settings = replace(faulty, plan=replace(PLAN, tries=2), rollout=part, seconds=2.0)
    with pytest.raises(PoisonedPromptError, match=rf"{reason}.*prompt = '3'"):
        run(settings, tmp_path)


def test_a_reward_that_loses_samples_is_refused(faulty: Settings, tmp_path: Path) -> None:
    settings = replace(faulty, reward=Part("faulty_rl_parts:Loses", OPTIONS))
    with pytest.raises(PoisonedPromptError, match="returned another number"):
        run(settings, tmp_path)


def test_a_failing_learner_ends_the_run(faulty: Settings, tmp_path: Path) -> None:
    settings = replace(faulty, learner=Part("faulty_rl_parts:Learner", OPTIONS | {"broken": True}))
    with pytest.raises(RunError, match="learner failed: ArithmeticError: not finite"):
        run(settings, tmp_path)


def test_a_worker_that_cannot_start_ends_the_run(faulty: Settings, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="rollout failed: RuntimeError: no such model"):
        run(replace(faulty, rollout=Part("faulty_rl_parts:stillborn")), tmp_path)


def test_workers_that_die_again_and_again_end_the_run(faulty: Settings, tmp_path: Path) -> None:
    settings = replace(faulty, rollout=Part("faulty_rl_parts:dead"), rollout_workers=1, restarts=2)
    with pytest.raises(RunError, match="3 processes of the rollout were lost"):
        run(settings, tmp_path)


def test_a_learner_that_is_done_ends_the_run_and_stays_done(faulty: Settings, tmp_path: Path) -> None:
    enough = replace(faulty, learner=Part("faulty_rl_parts:Learner", OPTIONS | {"enough": 20}), checkpoint_every=99)
    report = run(enough, tmp_path)
    assert report.version == 4  # of 12; each step adds a batch of 5
    again = run(enough, tmp_path)
    assert (again.first_version, again.version, again.metrics) == (4, 4, {})


def test_local_values_reach_a_part_and_do_not_bind_the_checkpoint(faulty: Settings, tmp_path: Path) -> None:
    there = replace(faulty, learner=Part("faulty_rl_parts:Learner", OPTIONS, {"enough": 10}))
    assert run(there, tmp_path).version == 2
    assert run(faulty, tmp_path).version == 12


def test_another_plan_does_not_continue_a_checkpoint(faulty: Settings, tmp_path: Path) -> None:
    run(faulty, tmp_path)
    assert (tmp_path / CHECKPOINT).exists()
    with pytest.raises(RunError, match="belongs to another plan"):
        run(replace(faulty, plan=replace(PLAN, alpha=1)), tmp_path)
