"""When to try a bundle again that could not be loaded."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST_PAUSE: Final = 300.0  # seconds; a try reads the whole bundle


class Retries:
    """Remembers the last bundle that was refused; the pause before the next try doubles each time.

    Args:
        pause: seconds before the second try.
        clock: monotonic seconds.

    Attributes:
        refused: why the last try failed; None = it did not.
        version: what was tried.
        stamp: of the pointer that named it.
    """

    def __init__(self, pause: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._first = self._pause = pause
        self._clock = clock
        self._again = 0.0
        self.refused: str | None = None
        self.version: str | None = None
        self.stamp = ""

    def due(self, version: str, stamp: str = "") -> bool:
        """Whether to try a version now: a new one, or one that was set again, at once; else after its pause."""
        if (version, stamp) != (self.version, self.stamp):
            self.version, self.stamp, self._pause, self._again = version, stamp, self._first, 0.0
        return self._clock() >= self._again

    def failed(self, error: Exception) -> bool:
        """Note a failure; whether it is another one than the last."""
        news = self.refused != str(error)
        self.refused = str(error)
        self._again = self._clock() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return news

    def forget(self) -> None:
        """It worked, or is not wanted any more."""
        self.refused = self.version = None
        self._again = 0.0
