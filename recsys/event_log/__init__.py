"""Durable append-only logs of events and exposures."""

from recsys.event_log.events import EventLog, read_events
from recsys.event_log.exposures import Exposure, ExposureLog, read_exposures
from recsys.event_log.segments import SegmentLog, read_records

__all__ = ["EventLog", "Exposure", "ExposureLog", "SegmentLog", "read_events", "read_exposures", "read_records"]
