"""kill -9 in the middle of jobs, runs side by side, a cluster instead of local threads: the outputs are the same."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
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
_PATIENCE = 240.0


def contents(work: Path) -> dict[str, str]:
    found = {name: JobManifest.load(work / name) for name in JOBS}
    return {name: manifest.content for name, manifest in found.items() if manifest is not None}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, random_log: RandomLog, write_tables: WriteTables) -> Path:
    return write_tables(tmp_path_factory.mktemp("log") / "tables", *random_log(4, users=25, items=30, events=400))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tables: Path, spark: SparkSession, quick: OfflineSettings) -> Path:
    """The work directory of a run that nobody disturbed. Read only."""
    work = tmp_path_factory.mktemp("whole") / "work"
    run_pipeline(tables, work, quick, session=spark)
    return work


@pytest.fixture(scope="module")
def expected(whole: Path) -> dict[str, str]:
    return contents(whole)


@dataclass(frozen=True)
class Command:
    """`windfire offline run` as a process of its own, with a temporary directory of its own."""

    tables: Path
    config: Path
    temporary: Path

    def start(self, work: Path, master: str = "local[2]", *more: str) -> subprocess.Popen[bytes]:
        run = ["offline", "run", "--data", str(self.tables), "--out", str(work), "--config", str(self.config)]
        return subprocess.Popen(
            [sys.executable, "-m", "windfire", *run, "--master", master, *more],
            env=os.environ | {"TMPDIR": str(self.temporary)},
            stderr=subprocess.PIPE,
        )

    def finish(self, *processes: subprocess.Popen[bytes]) -> None:
        for process in processes:
            _, messages = process.communicate(timeout=_PATIENCE)
            assert process.returncode == 0, messages.decode()


@pytest.fixture
def command(tmp_path: Path, tables: Path, quick: OfflineSettings) -> Command:
    config, temporary = tmp_path / "config.yaml", tmp_path / "temporary"
    config.write_text(quick.model_dump_json())
    temporary.mkdir()
    return Command(tables, config, temporary)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def done_up_to(whole: Path, job: str, work: Path) -> Path:
    """A work directory as it stands when a job is about to begin."""
    shutil.copytree(whole, work)
    for later in JOBS[JOBS.index(job) :]:
        shutil.rmtree(work / later)
    return work


def run_until_killed(command: Command, work: Path, job: str) -> None:
    """Run the command and kill it, not its Java process, as soon as the job has staged its folder."""
    process = command.start(work)
    deadline = time.monotonic() + _PATIENCE
    while process.poll() is None and not list(work.glob(f".staged-????????-{job}")):
        assert time.monotonic() < deadline, f"{job} did not begin"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=_PATIENCE)  # its Java process holds the other end until it has ended too
    assert process.returncode == -signal.SIGKILL


@pytest.mark.faults
def test_a_killed_run_resumes_to_the_same_tables(
    tmp_path: Path, command: Command, spark: SparkSession, quick: OfflineSettings, expected: dict[str, str]
) -> None:
    work = tmp_path / "work"
    run_until_killed(command, work, "sequences")
    assert list(contents(work)) == ["clean", "core", "catalog"]
    assert names(work / ".spark")
    run_until_killed(command, work, "semantic_ids")
    assert names(command.temporary) == set()
    resumed = run_pipeline(command.tables, work, quick, session=spark)
    done_before = JOBS[: JOBS.index("semantic_ids")]
    assert [manifest.job for manifest in resumed if manifest.skipped] == list(done_before)
    assert contents(work) == expected
    assert names(work) == {".lock", *JOBS}


@pytest.mark.faults
@pytest.mark.parametrize("job", JOBS)
def test_every_job_survives_being_killed(
    job: str, tmp_path: Path, command: Command, whole: Path, expected: dict[str, str]
) -> None:
    work = done_up_to(whole, job, tmp_path / "work")
    run_until_killed(command, work, job)
    assert list(contents(work)) == list(JOBS[: JOBS.index(job)])
    assert list(work.glob(f".staged-*-{job}"))
    command.finish(command.start(work))
    assert contents(work) == expected
    assert names(work) == {".lock", *JOBS}
    assert names(command.temporary) == set()


def test_two_runs_side_by_side_do_not_meet(
    tmp_path: Path, command: Command, whole: Path, expected: dict[str, str]
) -> None:
    # Java splits its options at spaces, Spark its directories at commas.
    works = [done_up_to(whole, "item_to_item", tmp_path / name) for name in ("one work", "another,work")]
    command.finish(*[command.start(work) for work in works])
    assert [contents(work) for work in works] == [expected, expected]
    assert [names(work) for work in works] == [{".lock", *JOBS}] * 2
    assert names(command.temporary) == set()


@pytest.mark.parametrize("master", ["nonsense", "local[nonsense]"], ids=["refused-by-java", "refused-by-spark"])
def test_a_session_that_does_not_start_is_one_line_of_error(master: str, tmp_path: Path, command: Command) -> None:
    process = command.start(tmp_path / "work", master)
    _, messages = process.communicate(timeout=_PATIENCE)
    assert process.returncode == 2
    assert "windfire: unavailable: Spark did not start" in messages.decode()
    assert "Traceback" not in messages.decode()
    assert names(tmp_path / "work") == {".lock"}
    assert names(command.temporary) == set()


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
    tmp_path: Path, command: Command, master: str, expected: dict[str, str]
) -> None:
    small = ["--spark", "spark.executor.memory=600m", "--spark", "spark.driver.memory=800m"]
    command.finish(command.start(tmp_path / "work", master, *small))
    assert contents(tmp_path / "work") == expected
    executors = [place for number in range(2) for place in (tmp_path / f"worker{number}").glob("app-*/*")]
    assert len(executors) >= 2
