from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from offline.session import is_local, java_home, session_config
from recsys.errors import ConfigError

_START = """
import os, sys
from offline.session import LazySession
with LazySession("local[1]", brief=True) as lazy:
    session = lazy.get()
    assert session.range(5).count() == 5
    print(session.conf.get("spark.driver.host"), {"JAVA_HOME", "SPARK_HOME", "PYSPARK_PYTHON"}.isdisjoint(os.environ))
"""


def test_the_bundled_runtime_is_executable() -> None:
    home = java_home()
    assert all(os.access(program, os.X_OK) for program in (home / "bin").iterdir())
    assert os.access(home / "lib" / "jspawnhelper", os.X_OK)


def test_a_chosen_runtime_must_hold_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINDFIRE_JAVA_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="bin/java"):
        java_home()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "java").touch()
    assert java_home() == tmp_path


@pytest.mark.parametrize(
    ("master", "local"),
    [("local[*]", True), ("spark://127.0.0.1:7077", True), ("spark://10.0.0.1:7077", False), ("yarn", False)],
)
def test_only_local_masters_are_bound_to_the_loopback_interface(master: str, local: bool, tmp_path: Path) -> None:
    assert is_local(master) is local
    assert ("spark.driver.bindAddress" in session_config(master, tmp_path, brief=False)) is local


def test_a_fresh_machine_needs_no_java_and_keeps_no_litter(tmp_path: Path) -> None:
    # No java on PATH, no JAVA_HOME: what Spark's scripts need from the system, and nothing else.
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "env", "ps"):
        (tools / name).symlink_to(next(p for p in (Path("/bin") / name, Path("/usr/bin") / name) if p.exists()))
    here = tmp_path / "here"
    here.mkdir()
    environment = {"PATH": str(tools), "TMPDIR": str(here), "HOME": str(here)}
    result = subprocess.run(
        [sys.executable, "-c", _START], cwd=here, env=environment, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout.split()) == (0, ["127.0.0.1", "True"]), result.stderr
    assert result.stderr == ""
    assert list(here.iterdir()) == []
