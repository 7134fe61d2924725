"""All that a server holds of single users: forgotten, or handed over, part by part."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from recsys.errors import UnavailableError
from recsys.event_log import UserRecords

if TYPE_CHECKING:
    from recsys.event_log import SegmentLog
    from serving.histories import Histories
    from serving.workers.neighbours import Neighbours

_WAITING: Final = 16  # erasures that may wait for the one that runs
_LINES: Final = 1 << 16  # bytes of an export that are handed over together


class Part(NamedTuple):
    """One place with data of users; its functions run in a thread and may take seconds.

    Attributes:
        name: of one such datum, as the export's lines and the answer of an erasure call it.
        forget: erases what there is of a user and returns how much it was; repeating it is harmless.
        held: all that there is of a user, one mapping that JSON can carry per datum.
        forget_own: as `forget`, but in this process's own place alone, where others have some like it.
    """

    name: str
    forget: Callable[[str], int]
    held: Callable[[str], Iterator[dict[str, Any]]]
    forget_own: Callable[[str], int] | None = None


class UserData:
    """The parts of one application, in the order in which they are erased; caches last, since the others fill them.

    An erasure that a client no longer waits for goes on. They run one after the other, beside the requests.
    """

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._caches: list[Callable[[str], object]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="windfire-users")
        self._waiting = 0

    def add(self, part: Part) -> None:
        """Include a place with data of users."""
        self._parts.append(part)

    def add_cache(self, forget: Callable[[str], object]) -> None:
        """Include a cache in memory; its function is called on the event loop and must not wait."""
        self._caches.append(forget)

    async def forget(self, user_id: str) -> dict[str, int]:
        """Erase all that came before this call; returns how much each part held.

        Raises:
            UnavailableError: a part refuses, or too many erasures wait; ask again.
        """
        if self._waiting >= _WAITING:
            raise UnavailableError("too many erasures wait")
        self._waiting += 1
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._forget, user_id)
        work.add_done_callback(self._done)
        erased = await asyncio.shield(work)
        self.empty_caches(user_id)
        return erased

    def forget_own(self, name: str, user_id: str) -> int:
        """Erase what one part has in this process's own place, in the calling thread; for a neighbour that asked."""
        (part,) = [part for part in self._parts if part.name == name]
        return (part.forget_own or part.forget)(user_id)

    def empty_caches(self, user_id: str) -> None:
        """Let the caches forget a user; on the event loop."""
        for forget in self._caches:
            forget(user_id)

    def export(self, user_id: str) -> Iterator[bytes]:
        """JSON lines of all that is held: `kind`, then the datum; last `{"kind": "end", "counts": {...}}`.

        The first piece comes when the first part was opened, so that an outage there is still an error.

        Raises:
            UnavailableError: a part refuses.
        """
        counts = dict.fromkeys((part.name for part in self._parts), 0)
        lines = bytearray()
        for part in self._parts:
            for datum in part.held(user_id):
                counts[part.name] += 1
                lines += orjson.dumps({"kind": part.name, **datum}, option=orjson.OPT_APPEND_NEWLINE)
                if len(lines) >= _LINES:
                    yield bytes(lines)
                    lines.clear()
        yield bytes(lines) + orjson.dumps({"kind": "end", "counts": counts}, option=orjson.OPT_APPEND_NEWLINE)

    def close(self) -> None:
        """Wait for the erasure that runs; what waits behind it was not answered and is not begun."""
        self._thread.shutdown(cancel_futures=True)

    def _forget(self, user_id: str) -> dict[str, int]:
        erased = dict.fromkeys((part.name for part in self._parts), 0)
        for part in self._parts:
            erased[part.name] += part.forget(user_id)
        return erased

    def _done(self, work: asyncio.Future[dict[str, int]]) -> None:
        self._waiting -= 1
        if not work.cancelled():
            work.exception()  # looked at, also where the client has gone


def history_part(histories: Histories) -> Part:
    """The entries of a user's history."""
    return Part("history", histories.forget, histories.held)


def log_part(name: str, log: SegmentLog, neighbours: Neighbours) -> Part:
    """The records of a user in the logs of events or of exposures, this worker's and its neighbours'.

    Args:
        name: `event` or `exposure`.
        log: of this worker.
        neighbours: the state folders beside it.
    """

    def forget_own(user_id: str) -> int:
        records = UserRecords(user_id)
        return log.erase(records.mark, records.theirs)

    def forget(user_id: str) -> int:
        return forget_own(user_id) + neighbours.forget(name, user_id)

    def held(user_id: str) -> Iterator[dict[str, Any]]:
        for directory in (log.directory, *neighbours.logs(name)):
            for number, payload in UserRecords(user_id).read(directory):
                yield {"number": number, **orjson.loads(payload)}

    return Part(name, forget, held, forget_own)
