"""Old records of a log go by whole segments, which are closed by age so that none keeps its records much longer."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

import msgspec

from recsys.event_log.segments import erased, scan, segment_files

if TYPE_CHECKING:
    from datetime import timedelta
    from pathlib import Path

    from recsys.event_log.segment_log import SegmentLog

LONGEST_SEGMENT: Final = 86_400_000_000
"""Microseconds that one segment spans at most, where there is a period: records are kept so much longer than it."""


class _Times(msgspec.Struct):
    time: int
    created_at: int | None = None

    @property
    def written(self) -> int:
        """When it came, by this machine's clock: of an event created_at, of an exposure time."""
        return self.time if self.created_at is None else self.created_at


_TIMES: Final = msgspec.json.Decoder(_Times)


def expire(log: SegmentLog, period: timedelta, now: int, *, before: int | None = None) -> int:
    """Remove the segments whose records are all older than a period.

    Args:
        log: of events or exposures.
        period: that records are kept.
        now: UTC microseconds.
        before: a record's number; it and what follows stays. None: no such limit.

    Returns:
        How many segments went.

    Raises:
        UnavailableError: the disk refuses.
        CorruptionError: the oldest segment is damaged.
    """
    micros = round(period.total_seconds() * 1_000_000)
    oldest = _first(segment_files(log.directory)[-1][1], last=True)
    if oldest is not None and oldest < now - min(micros, LONGEST_SEGMENT):
        log.rotate()
    reached = log.start
    for (_, path), (following, _) in pairwise(segment_files(log.directory)):
        if not _all_older(path, now - micros):
            break
        reached = following
    return log.truncate_before(reached if before is None else min(reached, before))


def _first(path: Path, *, last: bool) -> int | None:
    """When a segment's first record came; None where it holds none, or only erased ones."""
    kept = (payload for _, payload in scan(path, last=last) if not erased(payload))
    payload = next(kept, None)
    return None if payload is None else _TIMES.decode(payload).written


def _all_older(path: Path, cutoff: int) -> bool:
    """Whether the newest record of a closed segment is older; records come in the order of the clock."""
    first = _first(path, last=False)
    if first is not None and first >= cutoff:
        return False
    newest = None
    for _, payload in scan(path, last=False):
        newest = newest if erased(payload) else payload
    return newest is None or _TIMES.decode(newest).written < cutoff
