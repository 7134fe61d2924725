"""How fast an engine decodes with either beam, and when the smaller one is wise."""

from __future__ import annotations

from typing import Final

_REMEMBERED: Final = 0.8  # weight of earlier batches
_FORGIVEN: Final = 0.98  # of the full beam's pace per batch without it: a slow moment does not exclude it for ever
_SHARE: Final = 0.5  # of the time until the newest waiting request's deadline


class Pace:
    """Seconds per request, of the last batches; one thread writes.

    Args:
        small: whether there is a smaller beam.
    """

    def __init__(self, *, small: bool) -> None:
        self._small = small
        self._full_pace = self._small_pace = 0.0  # 0 = not known yet

    @property
    def least(self) -> float:
        """Of the faster beam; of the full one while the other was never used."""
        return self._small_pace or self._full_pace

    def of(self, small: bool) -> float:
        """Of a beam; of the full one while the other was never used."""
        return self.least if small else self._full_pace

    def took(self, small: bool, seconds: float) -> None:
        """A batch with this beam took so long per request."""
        if small:
            self._small_pace = _mixed(self._small_pace, seconds)
            self._full_pace *= _FORGIVEN
        else:
            self._full_pace = _mixed(self._full_pace, seconds)

    def small_is_wise(self, batch: int, first: float, waiting: int, last: float) -> bool:
        """Whether the full beam would make somebody late.

        Args:
            batch: requests that are decoded now.
            first: seconds until the first of their deadlines.
            waiting: requests behind them.
            last: seconds until the deadline of the newest of these. Half of it is left to those who come next: the
                smaller beam should work off a queue before anybody must be refused.
        """
        if not self._small:
            return False
        return self._full_pace * batch > first or (waiting > 0 and self._full_pace * (batch + waiting) > _SHARE * last)


def _mixed(before: float, now: float) -> float:
    return now if before == 0 else _REMEMBERED * before + (1 - _REMEMBERED) * now
