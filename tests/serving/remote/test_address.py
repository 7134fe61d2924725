from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from recsys.errors import ConfigError, UnavailableError
from serving.remote.address import claimed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "engine.sock"


def test_a_socket_is_its_users_alone_and_goes_with_its_owner(path: Path) -> None:
    with claimed(path) as bound:
        assert stat.filemode(path.lstat().st_mode) == "srw-------"
        with socket.socket(socket.AF_UNIX) as early, pytest.raises(ConnectionRefusedError):
            early.connect(str(path))  # nobody listens before the bundle is loaded
        bound.listen()
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(path))
    assert not path.exists()


def test_a_second_engine_is_refused_and_harms_nobody(path: Path) -> None:
    with claimed(path) as bound:
        bound.listen()
        with pytest.raises(UnavailableError, match="another process listens") as caught, claimed(path):
            pass
        assert (caught.value.field, caught.value.value) == ("WINDFIRE_ENGINE_SOCKET", str(path))
        assert path.exists()
    with claimed(path):
        assert path.exists()


def test_the_socket_of_a_dead_process_is_replaced(path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from serving.remote.address import claimed\n"
        "with claimed(Path(sys.argv[1])) as bound: bound.listen(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], env={**os.environ}).returncode == -9
    assert path.exists()
    before = path.lstat().st_ino, path.lstat().st_ctime_ns
    with claimed(path):
        assert (path.lstat().st_ino, path.lstat().st_ctime_ns) != before


def test_a_stranger_that_listens_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(path))
        stranger.listen()
        with pytest.raises(UnavailableError, match="another process listens"), claimed(path):
            pass
        assert path.exists()


def test_what_is_no_socket_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(ConfigError, match="something else than a socket"), claimed(path):
        pass
    assert path.read_text() == "precious"


def test_a_path_that_the_kernel_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="107 bytes"), claimed(tmp_path / ("x" * 108)):
        pass
