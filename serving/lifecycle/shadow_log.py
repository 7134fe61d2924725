"""What shadow and served bundle answered to the same requests, written down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from recsys.errors import UnavailableError
from recsys.event_log import GroupWriter, SegmentLog, read_records
from recsys.event_log.segments import segment_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHADOW_LOGS: Final = "shadow"
"""Folder of a state directory; one numbered log in it for each process that has written."""

_SEGMENT_BYTES: Final = 4 << 20
_SEGMENTS: Final = 16  # of one process; older ones are removed
_PROCESSES: Final = 256
_log = structlog.stdlib.get_logger(__name__)


class ShadowList(msgspec.Struct, frozen=True, array_like=True):
    """One of the two answers.

    Attributes:
        bundle: its version.
        items: item ids in order.
        served_by: the tier that began it.
        seconds: of the batch that it was a part of.
        batch: requests of that batch.
        ineligible: items that the last look took out.
        error: why there is no answer; empty where there is one.
    """

    bundle: str
    items: list[str]
    served_by: str
    seconds: float
    batch: int
    ineligible: int
    error: str = ""


class ShadowRecord(msgspec.Struct, frozen=True, array_like=True):
    """Both answers to a request; users are found through the exposure of its id.

    Attributes:
        request_id: joins with exposures and events.
        time: UTC microseconds.
        scene: of the request.
        n: items wanted.
        live: what was shown.
        shadow: what was not.
    """

    request_id: str
    time: int
    scene: str | None
    n: int
    live: ShadowList
    shadow: ShadowList


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(ShadowRecord)


class ShadowLog:
    """The writer's side; what waits longer than the disk allows is dropped.

    Args:
        state: the state directory of the process that decodes.

    Raises:
        UnavailableError: too many processes write.
    """

    def __init__(self, state: Path) -> None:
        self._records = _opened(state / SHADOW_LOGS)
        self._writer = GroupWriter("windfire-shadow-log", self._write, limit=1_000, linger=1.0)

    def append(self, record: ShadowRecord) -> None:
        """Queue a record.

        Raises:
            UnavailableError: the disk does not keep up.
        """
        self._writer.post(record)

    def close(self) -> None:
        """Write what waits."""
        self._writer.close()
        self._records.close()

    def _write(self, records: list[ShadowRecord]) -> list[None]:
        try:
            self._records.append([_encoder.encode(record) for record in records])
            segments = segment_files(self._records.directory)
            self._records.truncate_before(segments[-_SEGMENTS:][0][0])
        except Exception as error:  # noqa: BLE001 - nobody waits for it, and nobody's answer depends on it
            _log.warning("shadow_log_not_written", records=len(records), error=str(error))
        return [None] * len(records)


def read_shadow(state: Path) -> Iterator[ShadowRecord]:
    """The records of all processes that wrote into a state directory."""
    folder = state / SHADOW_LOGS
    for directory in sorted(folder.iterdir()) if folder.is_dir() else ():
        for _, data in read_records(directory):
            yield _decoder.decode(data)


def _opened(folder: Path) -> SegmentLog:
    for number in range(_PROCESSES):
        try:
            return SegmentLog(folder / f"{number:03d}", segment_bytes=_SEGMENT_BYTES)
        except UnavailableError:  # another process of this state writes there
            continue
    raise UnavailableError(
        "too many processes write what their shadows answer", field="state", value=str(folder), remedy="stop some"
    )
