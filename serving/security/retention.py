"""Old records of a server's logs go: by itself while it runs, by hand while it does not."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from recsys.errors import WindfireError
from recsys.event_log import ConsumerOffsets, expire
from serving.histories import consumer_name, history_address

if TYPE_CHECKING:
    from datetime import timedelta

    from recsys.event_log import SegmentLog
    from serving.settings import Settings

EVERY_SECONDS: Final = 3_600.0
_log = structlog.stdlib.get_logger(__name__)


class Removed(NamedTuple):
    """How many segments of each log went."""

    events: int
    exposures: int


def remove_old(settings: Settings, events: SegmentLog, exposures: SegmentLog, now: int) -> Removed:
    """Remove the segments that are older than the settings keep them.

    Events that are not merged into the histories yet stay, however old.

    Args:
        settings: periods, state, store of the histories.
        events: the event log.
        exposures: the exposure log.
        now: UTC microseconds.

    Raises:
        UnavailableError: the disk refuses.
        CorruptionError: the oldest segment of a log is damaged.
    """
    merged = ConsumerOffsets(settings.state / "offsets").get(consumer_name(history_address(settings)))
    return Removed(
        _expire(events, settings.event_retention, now, merged), _expire(exposures, settings.exposure_retention, now)
    )


def _expire(log: SegmentLog, period: timedelta | None, now: int, before: int | None = None) -> int:
    return 0 if period is None else expire(log, period, now, before=before)


async def keep_removing(settings: Settings, events: SegmentLog, exposures: SegmentLog) -> None:
    """Look at once and then every hour, until cancelled."""
    while settings.event_retention is not None or settings.exposure_retention is not None:
        try:
            removed = await asyncio.to_thread(remove_old, settings, events, exposures, time.time_ns() // 1_000)
        except (WindfireError, OSError) as error:
            _log.error("retention_failed", error=str(error))
        else:
            if any(removed):
                _log.info("segments_removed", **removed._asdict())
        await asyncio.sleep(EVERY_SECONDS)
