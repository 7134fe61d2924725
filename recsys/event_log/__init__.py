"""Durable append-only logs of events and exposures."""

from recsys.event_log.erasure import UserRecords
from recsys.event_log.event import Event, StoredEvent, parse_event
from recsys.event_log.events import EventLog, EventReader, RowResult, RowStatus, read_events
from recsys.event_log.exposures import Exposure, ExposureLog, read_exposures
from recsys.event_log.group_writer import GroupWriter
from recsys.event_log.offsets import ConsumerOffsets
from recsys.event_log.retention import expire
from recsys.event_log.segment_log import SegmentLog
from recsys.event_log.segments import SegmentReader, read_records

__all__ = [
    "ConsumerOffsets",
    "Event",
    "EventLog",
    "EventReader",
    "Exposure",
    "ExposureLog",
    "GroupWriter",
    "RowResult",
    "RowStatus",
    "SegmentLog",
    "SegmentReader",
    "StoredEvent",
    "UserRecords",
    "expire",
    "parse_event",
    "read_events",
    "read_exposures",
    "read_records",
]
