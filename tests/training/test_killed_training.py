"""The command `windfire train recommender` as a process that is killed: continued, it gives the same bits."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file

from training.recommender.settings import TrainSettings

if TYPE_CHECKING:
    from pathlib import Path

STEPS, EVERY = 200, 10
SETTINGS = TrainSettings.parse(
    {
        "model": {"d_model": 32, "layers": 1, "heads": 2, "max_history": 8},
        "teacher": {"kind": "ease", "top": 10},
        "steps": STEPS,
        "batch_tokens": 256,
        "evaluate_every": 50,
        "patience": 99,
        "checkpoint_every": EVERY,
        "bf16": False,
        "threads": 1,
    }
)
# The kernel ends a process that writes beyond this size; Python only has to be told not to catch it.
CUT_OFF = """
import resource, runpy, signal, sys
size, *sys.argv = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
runpy.run_module("windfire", run_name="__main__", alter_sys=True)
"""
_PATIENCE = 60.0


@dataclass(frozen=True)
class Command:
    """The command on one work directory."""

    work: Path
    config: Path

    def arguments(self, out: Path) -> list[str]:
        paths = ["--data", str(self.work), "--out", str(out), "--config", str(self.config)]
        return ["train", "recommender", *paths, "--seed", "4"]

    def start(self, out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "windfire", *self.arguments(out)], stdout=subprocess.DEVNULL)

    def finish(self, out: Path) -> None:
        assert self.start(out).wait(_PATIENCE) == 0


def checkpoint(out: Path) -> Path:
    return out / "checkpoint.safetensors"


def steps_saved(file: Path) -> int:
    """From the header, which stands before the tensors: half of a checkpoint will do."""
    data = file.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return int(json.loads(header["__metadata__"]["progress"])["step"])


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "weights.safetensors")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def command(tiny_work: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    config = tmp_path_factory.mktemp("train") / "config.yaml"
    config.write_text(SETTINGS.model_dump_json())
    return Command(tiny_work, config)


@pytest.fixture(scope="module")
def whole(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed. Read only."""
    out = tmp_path_factory.mktemp("whole") / "run"
    command.finish(out)
    return out


@pytest.fixture(scope="module")
def killed(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed as soon as it had a checkpoint. Read only."""
    out = tmp_path_factory.mktemp("killed") / "run"
    process = command.start(out)
    deadline = time.monotonic() + _PATIENCE
    while process.poll() is None and not checkpoint(out).exists():
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(_PATIENCE) == -signal.SIGKILL
    return out


@pytest.fixture(scope="module")
def cut_off(command: Command, killed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The killed run, continued until it died with half of the next checkpoint written. Read only."""
    out = shutil.copytree(killed, tmp_path_factory.mktemp("cut_off") / "run")
    half = str(checkpoint(out).stat().st_size // 2)
    run = [sys.executable, "-B", "-c", CUT_OFF, half, "windfire", *command.arguments(out)]
    assert subprocess.run(run, timeout=_PATIENCE).returncode == -signal.SIGXFSZ
    return out


def test_a_run_that_dies_while_it_writes_a_checkpoint_keeps_the_one_before(killed: Path, cut_off: Path) -> None:
    before = checkpoint(killed).read_bytes()
    assert checkpoint(cut_off).read_bytes() == before
    (half,) = cut_off.glob(".checkpoint.*.tmp")
    assert half.stat().st_size == len(before) // 2
    assert EVERY <= steps_saved(checkpoint(killed)) < STEPS
    assert steps_saved(half) == steps_saved(checkpoint(killed)) + EVERY  # continued, not begun again


def test_a_killed_run_continues_to_the_same_weights(
    command: Command, whole: Path, cut_off: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(cut_off, tmp_path / "run")
    assert "model" not in names(out)
    command.finish(out)
    expected, found = weights(whole), weights(out)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert steps_saved(checkpoint(out)) == STEPS
    assert names(out) == names(whole)
