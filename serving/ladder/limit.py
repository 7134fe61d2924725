"""How many calls may be under way at once: more while they come back in time, fewer when they do not (AIMD)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_CUT: Final = 0.8  # what is left of the limit when calls come back late
_REMEMBERED: Final = 0.9  # weight of earlier calls in the usual latency


class ConcurrencyLimit:
    """Grows by one per round of calls that come back in time, and falls by a fifth when one does not.

    A round is what a call usually takes: of the calls that were under way when the limit fell, none lets it fall
    again. It grows only where it is used. Single-threaded.

    Args:
        most: upper bound.
        first: to begin with.
        target: seconds; a call that takes longer is late.
        clock: monotonic seconds.

    Attributes:
        inside: calls under way.
    """

    def __init__(
        self,
        *,
        most: int,
        first: int,
        target: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._target, self._clock = most, target, clock
        self._limit = float(min(first, most))
        self._usual = 0.0
        self._cut_at = -float("inf")
        self.inside = 0

    @property
    def limit(self) -> int:
        """Calls that may be under way, at least 1."""
        return int(self._limit)

    def enter(self) -> bool:
        """Ask to call; who is let in must `leave`."""
        if self.inside >= self.limit:
            return False
        self.inside += 1
        return True

    def leave(self, began: float, well: bool | None) -> None:
        """Tell how a call went.

        Args:
            began: when, on the clock.
            well: False = the other side had too much to do; None = it says nothing.
        """
        used = self.inside * 2 >= self._limit
        self.inside -= 1
        if well is None:
            return
        now = self._clock()
        latency = now - began
        if not well or latency > self._target:
            if began > self._cut_at and now - self._cut_at > self._usual:
                self._cut_at = now
                self._limit = max(1.0, self._limit * _CUT)
            return
        self._usual = latency if not self._usual else _REMEMBERED * self._usual + (1 - _REMEMBERED) * latency
        if used and self._limit < self._most:
            self._limit = min(float(self._most), self._limit + 1 / self._limit)
