"""An alarm for an event loop that is exact to some ten microseconds, where the loops' own timers count milliseconds."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_CLOCK_MONOTONIC: Final = 1
_TFD_TIMER_ABSTIME: Final = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """A Linux timerfd on the clock of `time.monotonic`.

    Args:
        loop: that watches it.
        ring: called once per setting, at its time or soon after.

    Raises:
        OSError: the kernel gives no timer.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._setting = _Setting()
        self._fd = int(_LIBC.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        loop.add_reader(self._fd, self._rung)

    def set(self, when: float) -> None:
        """Ring at monotonic seconds `when`, at once if that is past; forgets an earlier setting.

        Raises:
            OSError: the kernel refuses.
        """
        whole = int(when)
        self._setting.value.seconds = whole
        # all zero would disarm it
        self._setting.value.nanoseconds = max(1, int((when - whole) * 1e9))
        if _LIBC.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(self._setting), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        """Ring no more."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _rung(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # it was set anew in the meantime
            return
        self._ring()
