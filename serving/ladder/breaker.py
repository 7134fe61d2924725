"""A circuit breaker: what fails again and again is left alone for a while, then tried by one request."""

from __future__ import annotations

import time
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class State(IntEnum):
    """Of a breaker; the numbers are those of the metric."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Lets calls through until `failures` of them in a row have failed; then none, but one probe after each pause.

    What a call says that began before the breaker opened does not count any more. Single-threaded.

    Args:
        failures: in a row that open it.
        pause: seconds between opening and the probe, and between two probes that fail.
        changed: called with every new state.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        failures: int,
        pause: float,
        changed: Callable[[State], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit, self._pause, self._changed, self._clock = failures, pause, changed, clock
        self._state = State.CLOSED
        self._era = 1  # rises with every opening: a call belongs to the era in which it began
        self._failed = 0
        self._again = 0.0  # when a probe may go
        changed(self._state)

    @property
    def state(self) -> State:
        """As of the last call."""
        return self._state

    def enter(self) -> int:
        """Ask to call: 0 = do not; else the number to `leave` with, which must happen whatever comes of the call."""
        if self._state is State.CLOSED:
            return self._era
        if self._state is State.HALF_OPEN or self._clock() < self._again:
            return 0
        self._turn(State.HALF_OPEN)
        return self._era

    def leave(self, entered: int, well: bool | None) -> None:
        """Tell how a call went.

        Args:
            entered: from `enter`.
            well: None = it says nothing, as where the client went away.
        """
        if entered != self._era or self._state is State.OPEN:
            return
        if self._state is State.HALF_OPEN:
            self._settle(well)
        elif well is not None:
            self._failed = 0 if well else self._failed + 1
            if self._failed >= self._limit:
                self._open(self._clock() + self._pause)

    def _settle(self, well: bool | None) -> None:
        """After a probe."""
        if well:
            self._failed = 0
            self._turn(State.CLOSED)
        else:  # a probe without a result is repeated at once
            self._open(self._clock() + (0.0 if well is None else self._pause))

    def _open(self, again: float) -> None:
        self._era += 1
        self._again = again
        self._turn(State.OPEN)

    def _turn(self, state: State) -> None:
        if state is not self._state:
            self._state = state
            self._changed(state)
