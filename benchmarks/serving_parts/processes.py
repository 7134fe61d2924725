"""Servers and engines as processes of their own, bound to cores; none outlives its parent."""

from __future__ import annotations

import ctypes
import http.client
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import psutil

from benchmarks.figures import ROOT
from benchmarks.redis_server import free_port
from recsys.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

HOST: Final = "127.0.0.1"
_READY_SECONDS: Final = 600.0  # a large bundle is verified first
_STOP_SECONDS: Final = 30.0
_TAIL: Final = 2_000
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None)
_MIB: Final = 1 << 20


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Keep this process on some cores until the block ends; on any where the machine lacks them."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, present(cores))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def present(cores: Sequence[int]) -> set[int]:
    """Those of some cores that this machine has; all where it has none of them."""
    every = set(range(os.cpu_count() or 1))
    return set(cores) & every or every


class Spawned:
    """One process.

    Args:
        module: run with `python -m`.
        arguments: of it.
        cores: it may use.
        log: its output is added to.
        variables: laid over the environment.
    """

    def __init__(
        self, module: str, arguments: Sequence[str], *, cores: Sequence[int], log: Path, variables: Mapping[str, str]
    ) -> None:
        self.log = log
        self._how = module, list(arguments), list(cores), dict(variables)
        path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}
        with log.open("ab") as output:
            self._begins = output.tell()
            self.process = subprocess.Popen(  # noqa: S603 - our own modules
                [sys.executable, "-m", module, *arguments],
                stdout=output,
                stderr=output,
                env=environment,
                preexec_fn=partial(_prepare, present(cores)),  # noqa: PLW1509
            )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.process.pid

    def says(self, word: str) -> bool:
        """Whether this process has written a word.

        Raises:
            UnavailableError: it has ended.
        """
        with self.log.open("rb") as file:
            file.seek(self._begins)
            found = word.encode() in file.read()
        if not found and self.process.poll() is not None:
            raise UnavailableError(f"ended with status {self.process.returncode}:\n{self.tail()}", remedy="see its log")
        return found

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-_TAIL:]

    def family(self) -> list[psutil.Process]:
        """It and its descendants."""
        own = psutil.Process(self.pid)
        return [own, *own.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """User and system time of all of them that run."""
        return sum(times.user + times.system for times in (process.cpu_times() for process in self.family()))

    def again(self) -> Spawned:
        """A new process of the same command."""
        module, arguments, cores, variables = self._how
        return Spawned(module, arguments, cores=cores, log=self.log, variables=variables)

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait(_STOP_SECONDS)

    def stop(self) -> None:
        """SIGTERM; kill -9 where that does not end it."""
        if self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            for process in self.family():
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait(_STOP_SECONDS)


class Service:
    """`windfire serve`, and `windfire engine` behind it.

    Args:
        registry: of the bundle.
        folder: for state, socket and logs; may exist.
        cores: of both.
        variables: settings of both.
        workers: that serve.
        engine: whether there is an engine process; else each worker has a model.
        module: that runs the commands.

    Attributes:
        port: of HTTP.
        server: the process.
        engine: the process, None where there is none.
    """

    def __init__(
        self, registry: Path, folder: Path, *, cores: Sequence[int], variables: Mapping[str, str],
        workers: int = 1, engine: bool = True, module: str = "windfire",
    ) -> None:  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.folder = folder
        self.server: Spawned | None = None
        self.engine: Spawned | None = None
        self._registry, self._cores, self._module, self._workers = registry, cores, module, workers
        self._socket = folder / "engine.sock" if engine else None
        self._variables = dict(variables)
        if self._socket is not None and len(str(self._socket)) > 90:  # of a Unix address: 108 bytes
            raise UnavailableError("the path is too long for a socket", field="work", value=str(folder))

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{HOST}:{self.port}"

    def __enter__(self) -> Self:
        try:
            self.start_engine()
            self.start_server()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start_engine(self) -> None:
        """Start the engine where there is one, and wait until it listens.

        Raises:
            UnavailableError: it does not.
        """
        if self._socket is not None:
            arguments = ["engine", *self._common(self.folder / "engine"), "--socket", str(self._socket)]
            self.engine = self._spawn(arguments, "engine.log", {})
            wait_until(partial(self.engine.says, "engine_listening"), self.engine)

    def start_server(self) -> None:
        """Start the server and wait until it is ready.

        Raises:
            UnavailableError: it is not.
        """
        socket = {} if self._socket is None else {"WINDFIRE_ENGINE_SOCKET": str(self._socket)}
        arguments = ["serve", *self._common(self.folder / "state"), "--host", HOST, "--port", str(self.port)]
        self.server = self._spawn([*arguments, "--workers", str(self._workers)], "server.log", socket)
        wait_until(self.ready, self.server)
        if self._workers > 1:
            wait_until(lambda: len(self.worker_pids()) == self._workers, self.server)

    def ready(self) -> bool:
        """Whether /readyz says so."""
        with suppress(OSError, http.client.HTTPException):
            return self._get("/readyz")[0] == http.client.OK
        return False

    def tells(self, path: str) -> bytes:
        """The body of an answer to a GET."""
        return self._get(path)[1]

    def metric(self, name: str) -> float:
        """Sum over the labels of a metric of the server; 0 where it has none."""
        lines = self.tells("/metrics").decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0].split(" ")[0] == name)

    def worker_pids(self) -> list[int]:
        """Processes that have served, by the log; those that still run."""
        if self.server is None:
            return []
        if self._workers == 1:
            return [self.server.pid]
        lines = [line for line in self.server.log.read_text(errors="replace").splitlines() if '"worker_up"' in line]
        found = [int(line.partition('"pid": ')[2].split(",")[0].rstrip("}")) for line in lines]
        return [pid for pid in found if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]

    def processes(self) -> list[Spawned]:
        """Those that were started."""
        return [spawned for spawned in (self.server, self.engine) if spawned is not None]

    def stop(self) -> None:
        """End both; a stopped one goes on first."""
        for spawned in self.processes():
            with suppress(ProcessLookupError):
                if spawned.process.poll() is None:
                    spawned.process.send_signal(signal.SIGCONT)
            spawned.stop()

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _common(self, state: Path) -> list[str]:
        return ["--registry", str(self._registry), "--state", str(state)]

    def _spawn(self, arguments: list[str], log: str, more: Mapping[str, str]) -> Spawned:
        variables = {**self._variables, **more}
        return Spawned(self._module, arguments, cores=self._cores, log=self.folder / log, variables=variables)


def pss_mib(pid: int) -> float:
    """Proportional set size of a process: its own pages, and its share of those it shares.

    Raises:
        OSError: the kernel does not tell.
    """
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / _MIB
    raise OSError(f"no Pss of process {pid}")


def wait_until(true: Callable[[], bool], spawned: Spawned) -> None:
    """Wait for what a process that starts brings about.

    Raises:
        UnavailableError: it ended, or took ten minutes.
    """
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline and spawned.process.poll() is None:
        if true():
            return
        time.sleep(0.05)
    raise UnavailableError(f"does not come up:\n{spawned.tail()}", remedy=f"see {spawned.log}")


def _prepare(cores: set[int]) -> None:
    """In the child: its cores, and no life after its parent."""
    os.sched_setaffinity(0, cores)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
