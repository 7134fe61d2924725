"""`windfire` with a wall clock that jumps: SIGUSR1 an hour ahead, SIGUSR2 an hour back, each from where it stands."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import FrameType

JUMP_SECONDS: Final = 3_600


class Shifted:
    """The wall clock of this process, as Python reads it; the monotonic clock goes on as before."""

    def __init__(self) -> None:
        self._seconds = 0
        self._time, self._time_ns = time.time, time.time_ns

    def time(self) -> float:
        """In the place of `time.time`."""
        return self._time() + self._seconds

    def time_ns(self) -> int:
        """In the place of `time.time_ns`."""
        return self._time_ns() + self._seconds * 1_000_000_000

    def jump(self, number: int, _: FrameType | None) -> None:
        """A signal has come."""
        self._seconds += JUMP_SECONDS if number == signal.SIGUSR1 else -JUMP_SECONDS

    def install(self) -> None:
        """Put it in the place of the real one, before anything else is imported."""
        time.time, time.time_ns = self.time, self.time_ns
        signal.signal(signal.SIGUSR1, self.jump)
        signal.signal(signal.SIGUSR2, self.jump)


if __name__ == "__main__":
    Shifted().install()
    from windfire.cli import main

    main()
