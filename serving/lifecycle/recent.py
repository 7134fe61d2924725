"""A few recent requests, kept so that a new bundle is tried on them before anybody sees it."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from recsys.catalog import CatalogFilter
from recsys.storage import write_bytes_atomically
from serving.engine import EngineRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_GAP: Final = 0.05  # seconds between two that are kept, so that a burst of one kind does not fill the ring
_log = structlog.stdlib.get_logger(__name__)


class Recorded(msgspec.Struct, frozen=True, array_like=True):
    """What is kept of a request: items and conditions, and nothing that names a user or a request."""

    history: list[str]
    n: int
    scene: str | None
    exclude_seen: bool
    categories: tuple[tuple[str, ...], ...]
    brands: tuple[str, ...]
    price_min_micros: int | None
    price_max_micros: int | None

    @classmethod
    def of(cls, request: EngineRequest) -> Recorded:
        """Of a request."""
        asked = request.conditions
        return cls(
            list(request.history), request.n, request.scene, request.exclude_seen,
            asked.categories, asked.brands, asked.price_min_micros, asked.price_max_micros,
        )  # fmt: skip

    def request(self, now: int) -> EngineRequest:
        """The same asked again at a time, UTC microseconds."""
        conditions = CatalogFilter(self.categories, self.brands, self.price_min_micros, self.price_max_micros)
        return EngineRequest(
            history=self.history,
            n=self.n,
            time=now,
            scene=self.scene,
            conditions=conditions,
            exclude_seen=self.exclude_seen,
        )


_decoder: Final = msgspec.msgpack.Decoder(list[Recorded])


def _bare(request: EngineRequest) -> EngineRequest:
    """What is kept of a request, without a copy of its history."""
    return EngineRequest(
        history=request.history,
        n=request.n,
        time=request.time,
        scene=request.scene,
        conditions=request.conditions,
        exclude_seen=request.exclude_seen,
    )


class RecentRequests:
    """A ring of the newest requests, in memory and in a file.

    Requests for an index and those with a list of allowed items are not kept: they say little about a bundle.

    Args:
        path: of the file; what it holds is taken over.
        limit: requests that are kept; 0 keeps none.
        clock: monotonic seconds.
    """

    def __init__(self, path: Path, limit: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._next = 0.0
        self._noted = self._saved = 0
        self._ring: deque[EngineRequest] = deque((each.request(0) for each in self._stored()), maxlen=limit)

    def note(self, requests: Sequence[EngineRequest]) -> None:
        """Keep one of a batch, if the last one was kept a moment ago; costs next to nothing."""
        now = self._clock()
        if now < self._next or not self._ring.maxlen:
            return
        for request in requests:
            if request.seek is None and request.allow is None:
                self._ring.append(_bare(request))
                self._noted += 1
                self._next = now + _GAP
                return

    def recorded(self, now: int) -> list[EngineRequest]:
        """What is kept, oldest first, to be asked again at a time, UTC microseconds."""
        return [replace(request, time=now) for request in list(self._ring)]

    def save(self) -> None:
        """Write the file, if something came since the last time; a disk that refuses is logged."""
        noted = self._noted
        if noted == self._saved:
            return
        try:
            data = msgspec.msgpack.encode([Recorded.of(request) for request in list(self._ring)])
            write_bytes_atomically(self._path, data)
        except (OSError, UnicodeEncodeError) as error:
            _log.warning("recent_requests_not_saved", error=str(error))
        self._saved = noted

    def _stored(self) -> list[Recorded]:
        try:
            return _decoder.decode(self._path.read_bytes())
        except FileNotFoundError:
            return []
        except (OSError, msgspec.DecodeError) as error:
            _log.warning("recent_requests_not_read", path=str(self._path), error=str(error))
            return []
