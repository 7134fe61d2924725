"""CPU seconds of a command with everything it started."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_PR_SET_CHILD_SUBREAPER: Final = 36
_ORPHANS_MAY_TAKE: Final = 60.0  # seconds
_TAIL: Final = 4000  # characters of output shown when a command fails


@dataclass(frozen=True, slots=True)
class Measured:
    """What a command cost.

    Attributes:
        cpu_seconds: user + system, of the command and all its descendants.
        seconds: wall time.
    """

    cpu_seconds: float
    seconds: float


class CommandError(RuntimeError):
    """A measured command ended with another status than 0; the message holds the end of its output."""


def run_measured(command: Sequence[str], *, log: Path) -> Measured:
    """Run a command to its end.

    On Linux this process adopts what the command leaves behind (Spark's JVM outlives the Python that started it),
    so that its time is counted too; elsewhere such orphans are not counted. Call it from one thread at a time; the time
    of other children that end meanwhile is counted too.

    Args:
        command: program and arguments.
        log: takes its standard output and error.

    Raises:
        CommandError: it failed.
    """
    _adopt_orphans()
    log.parent.mkdir(parents=True, exist_ok=True)
    others = _children()
    before, started = _children_seconds(), time.monotonic()
    with log.open("wb") as file:
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode  # noqa: S603
    seconds = time.monotonic() - started
    _wait_for_orphans(others, time.monotonic() + _ORPHANS_MAY_TAKE)
    if status:
        tail = log.read_text(errors="replace")[-_TAIL:]
        raise CommandError(f"{' '.join(command)} ended with status {status}; {log} ends with:\n{tail}")
    return Measured(_children_seconds() - before, seconds)


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def _wait_for_orphans(others: set[int], deadline: float) -> None:
    """Until none is left but those that were there before."""
    while time.monotonic() < deadline and (left := _children() - others):
        for pid in left:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.05)
