"""How often a key may ask: a token bucket on the monotonic clock."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class TokenBucket:
    """Full at first; every request takes a token, and tokens come back at a steady rate.

    For one thread, such as an event loop. A clock that does not move, or moves by hours, never overfills it.

    Args:
        rate: tokens per second that come back.
        burst: tokens that it holds at most.
        clock: monotonic seconds.
    """

    __slots__ = ("_burst", "_clock", "_rate", "_seen", "_tokens")

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._clock = clock
        self._tokens = float(burst)
        self._seen = clock()

    def take(self) -> float:
        """Take a token.

        Returns:
            0 where there was one; else the seconds until there will be one, and nothing is taken.
        """
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._seen) * self._rate)
        self._seen = now
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self._rate
