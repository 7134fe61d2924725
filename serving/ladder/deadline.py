"""Until when a request must be answered, and what may still be begun before that."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

from fastapi import Header
from pydantic import BeforeValidator, WithJsonSchema

if TYPE_CHECKING:
    from serving.settings import Settings

_MOST_RESERVE: Final = 0.25  # of a short deadline
_LAST: Final = 0.6  # of the reserve, for the answer from memory and its way
_TURNS: Final = 3  # of the event loop, in which a request is unread, and its answer not yet written


def _plain(value: object) -> object:
    """What is not written as a plain integer is refused; what is goes on as text."""
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        raise ValueError("must be a positive integer")
    return value


DeadlineMs = Annotated[
    int | None,
    BeforeValidator(_plain),
    WithJsonSchema({"type": "integer", "minimum": 1}),  # absent, never null
    Header(
        alias="X-Deadline-Ms",
        ge=1,
        description="Milliseconds within which the answer must be there; the server's own deadline if that is shorter.",
    ),
    WithJsonSchema({"type": "integer", "minimum": 1}),  # a header is absent and never null
]


@dataclass(frozen=True, slots=True)
class Deadline:
    """Points of the monotonic clock, in seconds.

    Attributes:
        answer: when the answer must be made.
        engine: when the engine's answer must be there; after it comes the time for an answer without it.
        began: when the request came.
    """

    answer: float
    engine: float
    began: float

    @property
    def tables(self) -> float:
        """When an answer from the tables must be there; after it there is time for one from memory."""
        return self.answer - _LAST * (self.answer - self.engine)

    @classmethod
    def within(
        cls,
        wanted_ms: int | None,
        settings: Settings,
        now: float | None = None,
        *,
        waited: float = 0.0,
        turn: float = 0.0,
    ) -> Deadline:
        """The lower of what a request wants and the settings allow, from now on.

        Args:
            wanted_ms: from the request's header, at least 1.
            settings: the bound, and what is kept back for an answer without the engine.
            now: monotonic seconds.
            waited: seconds that the request has waited before.
            turn: seconds of one turn of the event loop; it takes some until an answer is on its way.
        """
        seconds = settings.deadline.total_seconds()
        if wanted_ms is not None and wanted_ms < seconds * 1_000:
            seconds = wanted_ms / 1_000
        began = time.monotonic() if now is None else now
        reserve = min(settings.fallback_reserve.total_seconds(), seconds * _MOST_RESERVE)
        answer = began + seconds - waited - _TURNS * turn
        return cls(answer, answer - reserve, began)
