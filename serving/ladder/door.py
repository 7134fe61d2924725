"""Who may begin: one request per turn of the event loop, so that those under way come first.

What has begun needs some ten turns of the loop. Were all that arrive let in at once, every turn would hold a step of
each of them, and all would be late together. Here they wait where the wait is known: in a queue before any work.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

_BURST: Final = 0.5  # of the deadline: what a request may wait in a queue that came a moment ago
_STANDING: Final = 0.1  # the same in a queue that does not go
_PATIENCE: Final = 0.5  # of the deadline: a queue that is there for longer is no burst
_RELAPSE: Final = 1.0  # of the deadline: a queue from which somebody was refused within this time has not gone
_TURN: Final = 0.02  # of the deadline; in a longer turn nobody begins
_LONGEST: Final = 0.1  # of the deadline: a halt says nothing about the turns after it
_FADING: Final = 0.8  # of the longest turn, with every other one


class _Waiting(NamedTuple):
    admitted: asyncio.Future[bool]
    since: float


class Door:
    """Lets requests begin in the order of their arrival, and refuses who has waited too long to be answered in time.

    While nobody waits it costs a reading of the clock. Single-threaded.

    Args:
        deadline: seconds within which requests are to be answered.
        refused: called for everybody who is sent away.
        clock: monotonic seconds.
        soon: runs something in the loop's next turn; None = the running loop's `call_soon`.

    Attributes:
        turn: seconds of the longest of the last turns of the loop in which somebody waited; it fades.
    """

    def __init__(
        self,
        deadline: float,
        *,
        refused: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        soon: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        self._most, self._longest = deadline * _TURN, deadline * _LONGEST
        self._burst, self._short = deadline * _BURST, deadline * _STANDING
        self._patience, self._relapse = deadline * _PATIENCE, deadline * _RELAPSE
        self._refused, self._clock = refused, clock
        self._soon = soon or (lambda call: asyncio.get_running_loop().call_soon(call))
        self._queue: deque[_Waiting] = deque()
        self._turning = False  # somebody has begun in this turn
        self._began = self._empty_at = 0.0  # this turn; the last one in which nobody waited
        self._refused_at = -float("inf")
        self.turn = 0.0

    @property
    def standing(self) -> bool:
        """Whether more come than can be answered."""
        return self._stands(self._clock())

    async def enter(self) -> float | None:
        """Wait until one may begin.

        Returns:
            Seconds of waiting; None: there is no time left, do nothing.
        """
        now = self._clock()
        if not self._turning:
            self._turning, self._began, self._empty_at = True, now, now
            self._soon(self._turn)
            return 0.0
        waiting = _Waiting(asyncio.get_running_loop().create_future(), now)
        self._queue.append(waiting)
        return self._clock() - now if await waiting.admitted else None

    def _turn(self) -> None:
        """Between two turns of the loop: the next one's request."""
        now = self._clock()
        turn, self._began = now - self._began, now
        self.turn = min(max(turn if self._queue else 0.0, _FADING * self.turn), self._longest)
        self._refuse(now, self._short if self._stands(now) else self._burst)
        self._turning = (turn > self._most and bool(self._queue)) or self._admit()
        if self._turning:
            self._soon(self._turn)
        if not self._queue:
            self._empty_at = now

    def _stands(self, now: float) -> bool:
        lasting = self._turning and now - self._empty_at > self._patience
        return lasting or now - self._refused_at < self._relapse

    def _refuse(self, now: float, most: float) -> None:
        """Send away who has waited for longer than `most` seconds."""
        while self._queue and now - self._queue[0].since > most:
            waiting = self._queue.popleft()
            if not waiting.admitted.done():
                waiting.admitted.set_result(False)
                self._refused_at = now
                self._refused()

    def _admit(self) -> bool:
        """Let the first of the queue begin; whether there was one."""
        while self._queue:
            waiting = self._queue.popleft()
            if not waiting.admitted.done():  # else it was cancelled
                waiting.admitted.set_result(True)
                return True
        return False
