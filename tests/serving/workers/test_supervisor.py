"""What the parent decides, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from recsys.errors import ConfigError, UnavailableError
from serving.settings import Settings
from serving.workers.folders import alone, check_workers, shared_state, worker_settings
from serving.workers.supervisor import FIRST_PAUSE, LONGEST_PAUSE, bound, pause_after

if TYPE_CHECKING:
    from pathlib import Path


def test_pauses_between_restarts_grow_up_to_a_limit() -> None:
    pauses = [pause_after(deaths) for deaths in range(1, 40)]
    assert pauses[0] == FIRST_PAUSE
    assert pauses[-1] == LONGEST_PAUSE
    assert all(later in (2 * sooner, LONGEST_PAUSE) for sooner, later in pairwise(pauses))


def test_several_workers_need_histories_that_they_share(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"WINDFIRE_HISTORY_STORE.*lmdb:DIRECTORY"):
        check_workers(Settings(state=tmp_path, workers=2))
    check_workers(Settings(state=tmp_path, workers=1))
    check_workers(Settings(state=tmp_path, workers=2, history_store=SecretStr("redis://127.0.0.1:1/0")))


def test_workers_share_what_is_no_log(tmp_path: Path) -> None:
    settings = Settings(state=tmp_path, workers=3, history_store=SecretStr("lmdb:x"))
    own = worker_settings(settings, 2)
    assert own.state == tmp_path / "worker-2"
    assert shared_state(own) == tmp_path
    alone = Settings(state=tmp_path)
    assert shared_state(alone) == tmp_path


def test_a_state_has_one_parent(tmp_path: Path) -> None:
    refused = pytest.raises(UnavailableError, match="another server")
    with alone(tmp_path / "state"), refused, alone(tmp_path / "state"):
        pytest.fail("two have it")
    with alone(tmp_path / "state"):
        pass


def test_a_port_is_bound_once() -> None:
    with bound("127.0.0.1", 0) as listening:
        host, port = listening.getsockname()
        with pytest.raises(OSError, match="in use"):
            bound(host, port)


def test_what_no_worker_can_start_with_ends_the_parent(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    for worker in range(2):
        (tmp_path / "state" / f"worker-{worker}").write_text("no directory")
    command = [sys.executable, "-c", "from windfire.cli import main; main()", "serve", "--workers", "2", "--port", "0"]
    where = ["--state", str(tmp_path / "state"), "--registry", str(tmp_path)]
    variables = {"WINDFIRE_HISTORY_STORE": f"lmdb:{tmp_path / 'lmdb'}", "WINDFIRE_ENGINE_SOCKET": str(tmp_path / "no")}
    done = subprocess.run([*command, *where], env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("windfire: unavailable: no worker could start")
