"""Forgetting a user in the logs of all workers; each log has one writer, and only that one may erase in it.

Whoever is asked to forget puts a note into a folder that all workers look into; each erases in its own log and says in
a file beside the note how much that was. The note stays until all have, or the worker that wrote it gives up waiting: a
later look then still finds it, and whoever wanted it asks again.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import orjson
import structlog

from recsys.errors import UnavailableError, WindfireError
from recsys.event_log import SegmentLog, UserRecords
from recsys.event_log.segments import segment_files
from recsys.storage import read_json, write_json_atomically
from serving.user_data import Part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from serving.settings import Settings

LOGS: Final = {"event": "events", "exposure": "exposures"}
"""Part of a user's data, as `serving.user_data` calls it, to the log's folder."""

_LOOK: Final = 0.2  # seconds between two looks into the folder
_PATIENCE: Final = 10.0  # seconds for which a log's erasure waits for the other workers
_KEPT: Final = 3_600.0  # seconds after which a note that nobody waits for is removed
_log = structlog.stdlib.get_logger(__name__)


class Erasures:
    """One worker's end.

    Args:
        state: of all workers.
        number: of this one.
        workers: how many there are.
        own: erases in this worker's logs, by the names of `LOGS`.
        forgotten: told of a user whom another worker was asked to forget, so that caches do, too; on the event loop.
        patience: seconds; see the module.
    """

    def __init__(
        self,
        state: Path,
        number: int,
        workers: int,
        own: Mapping[str, Callable[[str], int]],
        forgotten: Callable[[str], object],
        *,
        patience: float = _PATIENCE,
    ) -> None:
        self._state = state
        self._folder = state / "erasures"
        self._number = number
        self._others = [each for each in range(workers) if each != number]
        self._own = own
        self._forgotten = forgotten
        self._patience = patience

    def parts(self) -> list[Part]:
        """What all other workers hold of users, and those that are no more."""
        return [Part(name, self._forget_as(name), self._held_as(name)) for name in LOGS]

    async def follow(self) -> None:
        """Do what other workers ask for, until cancelled."""
        while True:
            try:
                for user_id in await asyncio.to_thread(self.look):
                    self._forgotten(user_id)
            except (WindfireError, OSError) as error:
                _log.error("erasure_failed", error=str(error))  # and tried again: the note is still there
            await asyncio.sleep(_LOOK)

    def look(self) -> list[str]:
        """Erase what notes ask for and was not done yet; returns the users."""
        self._tidy()
        users = []
        for note in self._folder.glob("*.note"):
            done = self._done(note, self._number)
            # In this order: the note is removed first, so one that is still there was not done.
            asked = None if done.exists() else _read(note)
            if asked is None or asked["by"] == self._number:
                continue
            count = self._own[asked["log"]](asked["user_id"])
            write_json_atomically(done, {"count": count})
            users.append(asked["user_id"])
        return users

    def _forget_as(self, log: str) -> Callable[[str], int]:
        def forget(user_id: str) -> int:
            note = self._folder / f"{uuid.uuid4().hex}.note"
            write_json_atomically(note, {"user_id": user_id, "log": log, "by": self._number})
            unused = sum(_erase_in(folder, user_id) for folder in self._unused(LOGS[log]))
            return unused + self._wait(note)

        return forget

    def _wait(self, note: Path) -> int:
        """How much all other workers have erased.

        Raises:
            UnavailableError: one does not say in time.
        """
        until = time.monotonic() + self._patience
        files = [self._done(note, number) for number in self._others]
        while not all(file.exists() for file in files):
            if time.monotonic() > until:
                raise UnavailableError("another worker has not erased its part yet; ask again")
            time.sleep(_LOOK / 4)
        count = sum(int(read_json(file)["count"]) for file in files)
        note.unlink(missing_ok=True)
        for file in files:
            file.unlink(missing_ok=True)
        return count

    def _held_as(self, log: str) -> Callable[[str], Iterator[dict[str, Any]]]:
        def held(user_id: str) -> Iterator[dict[str, Any]]:
            folders = [self._state / f"worker-{number}" / LOGS[log] for number in self._others]
            for folder in [*folders, *self._unused(LOGS[log])]:
                for number, payload in UserRecords(user_id).read(folder):
                    yield {"number": number, **orjson.loads(payload)}

        return held

    def _unused(self, folder: str) -> list[Path]:
        """Logs of one kind without a writer: of the time before there were workers, and of when there were more."""
        living = {f"worker-{number}" for number in (*self._others, self._number)}
        found = [
            self._state / folder,
            *(each / folder for each in self._state.glob("worker-*") if each.name not in living),
        ]
        return [each for each in found if segment_files(each)]

    def _done(self, note: Path, number: int) -> Path:
        return note.with_suffix(f".{number}")

    def _tidy(self) -> None:
        """Remove notes that nobody waits for any more."""
        for file in self._folder.glob("*"):
            try:
                old = time.time() - file.stat().st_mtime > _KEPT
            except FileNotFoundError:
                continue
            if old:
                file.unlink(missing_ok=True)


def join_erasures(
    settings: Settings, own: Mapping[str, Callable[[str], int]], forgotten: Callable[[str], object]
) -> Erasures:
    """The end of the worker whose settings these are; see `Erasures`."""
    number = int(settings.state.name.rpartition("-")[2])
    return Erasures(settings.state.parent, number, settings.workers, own, forgotten)


def _erase_in(folder: Path, user_id: str) -> int:
    records = UserRecords(user_id)
    with closing(SegmentLog(folder)) as log:
        return log.erase(records.mark, records.theirs)


def _read(note: Path) -> dict[str, Any] | None:
    try:
        asked: dict[str, Any] = read_json(note)
    except FileNotFoundError:  # all is done meanwhile
        return None
    return asked
