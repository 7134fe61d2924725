"""Signals of a process as something to wait for."""

from __future__ import annotations

import signal
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

TAKEN: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Signals:
    """Collects SIGTERM, SIGINT and SIGHUP while it is open; for the main thread, which waits for `fileno`."""

    def __init__(self) -> None:
        self._reading, self._writing = socket.socketpair()
        self._reading.setblocking(False)
        self._writing.setblocking(False)

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, _noted) for number in TAKEN}
        self._woken = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._woken)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._reading.close()
        self._writing.close()

    def fileno(self) -> int:
        """Readable where a signal has come."""
        return self._reading.fileno()

    def received(self) -> list[int]:
        """The signals since the last call, in their order."""
        with suppress(BlockingIOError):
            return list(self._reading.recv(4_096))
        return []


def _noted(_: int, __: object) -> None:
    """The wake-up descriptor has it; without a handler the signal would end the process."""
