"""Who runs what: every process that decodes says so in a small file of the registry, removed when it ends."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

WORKERS: Final = "workers"
"""Folder of a registry."""

BEAT: Final = 5.0  # seconds between two signs of life
_SILENT: Final = 30.0  # seconds after which a worker of another host counts as gone
_log = structlog.stdlib.get_logger(__name__)


class WorkerReport(msgspec.Struct, frozen=True, kw_only=True):
    """One process.

    Attributes:
        host: its name.
        pid: of the process, on its host.
        number: of the engine in its process, from 1.
        born: when the process began, in the kernel's words; tells it from a later one with its number.
        beat: UTC seconds of its last sign of life.
        bundle: the version that answers; None before the first.
        refused_version: the version that it cannot load, if there is one.
        refused_stamp: of the CURRENT that named it, see `Registry.stamp`.
        refused: why.
        canary: the version that it runs as canary.
        shadow: the version that it runs as shadow.
        beside_refused: why it cannot load one of these.
    """

    host: str
    pid: int
    born: str
    beat: float
    number: int = 1
    bundle: str | None = None
    refused_version: str | None = None
    refused_stamp: str | None = None
    refused: str | None = None
    canary: str | None = None
    shadow: str | None = None
    beside_refused: str | None = None

    def refuses(self, version: str, stamp: str) -> bool:
        """Whether it has tried what this CURRENT names, in vain."""
        return self.refused_version == version and self.refused_stamp == stamp

    @property
    def name(self) -> str:
        """`<host>-<pid>`; a further engine of the same process has its number behind."""
        return f"{self.host}-{self.pid}" + (f"-{self.number}" if self.number > 1 else "")


_decoder: Final = msgspec.json.Decoder(WorkerReport)


class Reporter:
    """Writes the report of this process; a registry that cannot be written is logged once.

    Args:
        registry: its directory.
        clock: UTC seconds.
        host: of this process.
    """

    def __init__(self, registry: Path, *, clock: Callable[[], float] = time.time, host: str | None = None) -> None:
        self._clock = clock
        self._report = WorkerReport(host=host or _host(), pid=os.getpid(), born=born(os.getpid()), beat=0.0)
        self._folder = registry / WORKERS
        self._claimed = False
        self._lock = threading.Lock()
        self._failed = self._closed = False

    def say(self, **changes: str | None) -> None:
        """Write what changed, and a sign of life when one is due."""
        with self._lock:
            self._say(changes)

    def close(self) -> None:
        """Remove the report."""
        with self._lock, suppress(OSError):
            self._closed = True
            if self._claimed:
                self._path.unlink()

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._report.name}.json"

    def _say(self, changes: dict[str, str | None]) -> None:
        report = msgspec.structs.replace(self._report, **changes)
        now = self._clock()
        if self._closed or (report == self._report and 0 <= now - report.beat < BEAT):
            return
        self._report = msgspec.structs.replace(report, beat=now)
        try:
            self._claim()
            temporary = self._path.with_suffix(".tmp")
            temporary.write_bytes(msgspec.json.encode(self._report))  # not flushed: a lost one is written again
            temporary.replace(self._path)
        except OSError as error:
            if not self._failed:
                _log.warning("worker_not_reported", path=str(self._path), error=str(error))
            self._failed = True
        else:
            self._failed = False

    def _claim(self) -> None:
        """Take a name that no other engine of this process has; what an earlier process left under it is replaced."""
        if self._claimed:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        while (held := _read(self._path)) is not None and (held.pid, held.born) == (os.getpid(), self._report.born):
            self._report = msgspec.structs.replace(self._report, number=self._report.number + 1)
        self._claimed = True


def live_workers(registry: Path, *, now: float | None = None, host: str | None = None) -> list[WorkerReport]:
    """The reports of all processes that live, by name.

    One of this host lives as long as its process; one of another host as long as it gives signs of life, by the clocks
    of both. What dead processes of this host left behind is removed.

    Args:
        registry: its directory.
        now: UTC seconds.
        host: of this process.
    """
    now, host = time.time() if now is None else now, host or _host()
    found = []
    for path in sorted((registry / WORKERS).glob("*.json")):
        report = _read(path)
        if report is None:
            continue
        if report.host != host:
            if now - report.beat < _SILENT:
                found.append(report)
        elif born(report.pid) == report.born:
            found.append(report)
        else:
            with suppress(OSError):
                path.unlink()
    return sorted(found, key=lambda report: report.name)


def _read(path: Path) -> WorkerReport | None:
    try:
        return _decoder.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):  # just removed, or half a file of a crashed machine
        return None


def born(pid: int) -> str:
    """When a process of this host began, in ticks since the machine's start; empty = there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]  # its name may hold blanks and brackets


def _host() -> str:
    return "".join(sign if sign.isalnum() or sign in "-." else "_" for sign in socket.gethostname())
