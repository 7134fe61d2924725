"""kill -9 in the middle of jobs, and a cluster instead of local threads: the outputs are the same."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import psutil
import pytest

from offline.job import JobManifest
from offline.pipeline import JOBS, run_pipeline
from offline.session import java_home

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pyspark.sql import SparkSession

    from offline.settings import OfflineSettings
    from tests.offline.conftest import RandomLog, WriteTables

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:distutils Version classes:DeprecationWarning"),
]
_PATIENCE = 120.0


def contents(work: Path) -> dict[str, str]:
    found = {name: JobManifest.load(work / name) for name in JOBS}
    return {name: manifest.content for name, manifest in found.items() if manifest is not None}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, random_log: RandomLog, write_tables: WriteTables) -> Path:
    return write_tables(tmp_path_factory.mktemp("log") / "tables", *random_log(4, users=25, items=30, events=400))


@pytest.fixture(scope="module")
def expected(
    tmp_path_factory: pytest.TempPathFactory, tables: Path, spark: SparkSession, quick: OfflineSettings
) -> dict[str, str]:
    work = tmp_path_factory.mktemp("whole") / "work"
    run_pipeline(tables, work, quick, session=spark)
    return contents(work)


def run_until_killed(tables: Path, work: Path, config: Path, job: str) -> None:
    """Run the command and kill it, not its Java process, as soon as the job has staged its folder."""
    command = ["offline", "run", "--data", tables, "--out", work, "--config", config, "--master", "local[2]"]
    process = subprocess.Popen([sys.executable, "-m", "windfire", *map(str, command)])
    deadline = time.monotonic() + _PATIENCE
    while process.poll() is None and not list(work.glob(f".staged-????????-{job}")):
        assert time.monotonic() < deadline, f"{job} did not begin"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_killed_run_resumes_to_the_same_tables(
    tmp_path: Path, tables: Path, spark: SparkSession, quick: OfflineSettings, expected: dict[str, str]
) -> None:
    work, config = tmp_path / "work", tmp_path / "config.yaml"
    config.write_text(quick.model_dump_json())
    run_until_killed(tables, work, config, "sequences")
    assert list(contents(work)) == ["clean", "core", "catalog"]
    run_until_killed(tables, work, config, "semantic_ids")
    resumed = run_pipeline(tables, work, quick, session=spark)
    done_before = JOBS[: JOBS.index("semantic_ids")]
    assert [manifest.job for manifest in resumed if manifest.skipped] == list(done_before)
    assert contents(work) == expected
    assert not list(work.glob(".staged-*"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def master(tmp_path: Path) -> Iterator[str]:
    """A standalone master with two workers of one core on the loopback interface."""
    import pyspark

    home, port = pyspark.__path__[0], free_port()
    url = f"spark://127.0.0.1:{port}"
    place = ["--host", "127.0.0.1", "--webui-port", "0"]
    worker = ["org.apache.spark.deploy.worker.Worker", *place, "--cores", "1", "--memory", "1g", url]
    roles = [["org.apache.spark.deploy.master.Master", *place, "--port", str(port)]]
    roles += [[*worker, "--work-dir", str(tmp_path / f"worker{number}")] for number in range(2)]
    environment = os.environ | {
        "JAVA_HOME": str(java_home()),
        "SPARK_HOME": home,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_DAEMON_MEMORY": "256m",
        "SPARK_DAEMON_JAVA_OPTS": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1",
    }
    with ExitStack() as stack:
        for role in roles:
            process = subprocess.Popen([f"{home}/bin/spark-class", *role], env=environment, stderr=subprocess.DEVNULL)
            stack.enter_context(process)
            stack.callback(end, process)
            await_listening(psutil.Process(process.pid))
        yield url


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(_PATIENCE)


def await_listening(process: psutil.Process) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not any(found.status == psutil.CONN_LISTEN for found in process.net_connections("tcp")):
        assert time.monotonic() < deadline, "a Spark process did not begin to listen"
        time.sleep(0.05)


def test_two_workers_give_the_same_tables_as_local_threads(
    tmp_path: Path, master: str, tables: Path, quick: OfflineSettings, expected: dict[str, str]
) -> None:
    work, config = tmp_path / "work", tmp_path / "config.yaml"
    config.write_text(quick.model_dump_json())
    command = ["offline", "run", "--data", tables, "--out", work, "--config", config, "--master", master]
    small = ["--spark", "spark.executor.memory=600m", "--spark", "spark.driver.memory=800m"]
    result = subprocess.run([sys.executable, "-m", "windfire", *map(str, command), *small], capture_output=True)
    assert result.returncode == 0, result.stderr.decode()
    assert contents(work) == expected
    executors = [place for number in range(2) for place in (tmp_path / f"worker{number}").glob("app-*/*")]
    assert len(executors) >= 2
