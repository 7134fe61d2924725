"""The other state folders of one server: erasing a user reaches the logs of every worker, living or not.

A log has one writer, so a living worker erases in its own: it finds the request in a folder of its state and puts its
answer beside it. A log that nobody has open is erased by whoever was asked.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import orjson
import structlog

from recsys.errors import UnavailableError
from recsys.event_log import SegmentLog, UserRecords
from recsys.storage import read_json, write_bytes_atomically
from serving.workers.folders import shared_state

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from serving.settings import Settings

_FOLDER: Final = "erasures"
_LOOK_SECONDS: Final = 0.2
_LONGEST: Final = 120.0  # seconds that a worker waits for another one; the client is told to ask again before
_STALE: Final = 3_600.0  # seconds after which an answer that nobody took is removed
_log = structlog.stdlib.get_logger(__name__)
_LOGS: Final = {"event": "events", "exposure": "exposures"}


class Neighbours:
    """The state folders beside that of one worker.

    Args:
        settings: of this worker.
        patience: seconds to wait for a living one.
    """

    def __init__(self, settings: Settings, *, patience: float = _LONGEST) -> None:
        self._own = settings.state
        self._root = shared_state(settings)
        self._alone = settings.workers == 1
        self._patience = patience
        self._trouble = ""

    def logs(self, part: str) -> list[Path]:
        """The folders of their logs of events (`event`) or exposures (`exposure`)."""
        return [log for state in self._states() if (log := state / _LOGS[part]).is_dir()]

    def forget(self, part: str, user_id: str) -> int:
        """Erase a user's records from their logs; returns how many. For a thread.

        Raises:
            UnavailableError: a disk refuses, or a living worker does not answer; repeat it.
            CorruptionError: a log is damaged.
        """
        return sum(self._forget_in(log, part, user_id) for log in self.logs(part))

    async def answer(self, forget: Callable[[str, str], int], emptied: Callable[[str], None]) -> None:
        """Do what neighbours ask, until cancelled.

        Args:
            forget: erases from one of this worker's own parts a user; called in a thread.
            emptied: empties its caches; called on the event loop.
        """
        while not self._alone:
            for request in await asyncio.to_thread(self._requests):
                try:
                    await self._answer_one(request, forget, emptied)
                except Exception as error:  # noqa: BLE001 - who asked may take the file away, or the disk fail
                    if str(error) != self._trouble:
                        _log.warning("erasure_not_answered", error=type(error).__name__)
                    self._trouble = str(error)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _answer_one(
        self, request: Path, forget: Callable[[str, str], int], emptied: Callable[[str], None]
    ) -> None:
        wanted = await asyncio.to_thread(read_json, request)
        part, user_id = str(wanted["part"]), str(wanted["user_id"])
        try:
            answer: dict[str, Any] = {"erased": await asyncio.to_thread(forget, part, user_id)}
        except Exception as error:  # noqa: BLE001 - told to whoever asked, who repeats it
            answer = {"trouble": type(error).__name__}
        emptied(user_id)
        await asyncio.to_thread(_put, request.with_suffix(".done"), answer)
        await asyncio.to_thread(request.unlink, missing_ok=True)

    def _states(self) -> list[Path]:
        return [state for state in (self._root, *sorted(self._root.glob("worker-*"))) if state != self._own]

    def _forget_in(self, log: Path, part: str, user_id: str) -> int:
        """Erase by oneself where nobody has the log open, now or while waiting; else by whoever has."""
        request: Path | None = None
        ends = time.monotonic() + self._patience
        while (erased := _erase_unowned(log, user_id)) is None:
            if request is None:
                request = log.parent / _FOLDER / f"{secrets.token_hex(8)}.json"
                _put(request, {"part": part, "user_id": user_id})
            if (answer := _answer_to(request, seconds=1.0)) is not None:
                return _count(answer)
            if time.monotonic() > ends:
                raise UnavailableError("another worker does not answer; it erases when it is there again")
        if request is not None:
            request.unlink(missing_ok=True)
        return erased

    def _requests(self) -> list[Path]:
        """What waits; answers that nobody took go."""
        folder = self._own / _FOLDER
        for done in folder.glob("*.done"):
            with suppress(FileNotFoundError):  # it was just taken
                if time.time() - done.stat().st_mtime > _STALE:
                    done.unlink()
        return sorted(folder.glob("*.json"))


def _erase_unowned(log: Path, user_id: str) -> int | None:
    """Erase a user from a log that nobody has open; None where somebody has."""
    try:
        records = SegmentLog(log)
    except UnavailableError:
        return None
    try:
        user = UserRecords(user_id)
        return records.erase(user.mark, user.theirs)
    finally:
        records.close()


def _answer_to(request: Path, *, seconds: float) -> dict[str, Any] | None:
    done = request.with_suffix(".done")
    ends = time.monotonic() + seconds
    while not done.exists():
        if time.monotonic() > ends:
            return None
        time.sleep(_LOOK_SECONDS / 4)
    answer: dict[str, Any] = read_json(done)
    done.unlink()
    return answer


def _count(answer: dict[str, Any]) -> int:
    if "erased" not in answer:
        raise UnavailableError(f"another worker could not erase: {answer['trouble']}")
    return int(answer["erased"])


def _put(path: Path, value: dict[str, Any]) -> None:
    """Write a small file that only this user can read: ids of users stand in it."""
    write_bytes_atomically(path, orjson.dumps(value), mode=0o600)
