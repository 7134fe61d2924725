"""The durable log of exposures: what was answered, joinable with events by request_id."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from recsys.event_log.segments import SEGMENT_BYTES, SegmentLog, read_records

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


class Exposure(msgspec.Struct, frozen=True, kw_only=True):
    """One answer.

    Attributes:
        request_id: joins with the request_id of events.
        user_id: None for an anonymous request.
        time: UTC microseconds.
        scene: of the request.
        items: item ids in the order shown.
        positions: from 0, one per item.
        scores: one per item; comparable inside one source only.
        sources: what proposed each item.
        propensities: probability that the policy shows the item at its position.
        served_by: the tier that answered.
        decoder: None where none ran.
        bundle_version: of the weights.
        catalog_version: of the catalog's state.
        arms: experiment to arm.
    """

    request_id: str
    user_id: str | None
    time: int
    scene: str | None
    items: list[str]
    positions: list[int]
    scores: list[float]
    sources: list[str]
    propensities: list[float]
    served_by: str
    decoder: str | None
    bundle_version: str
    catalog_version: str
    arms: dict[str, str]


def read_exposures(directory: Path, start: int = 0) -> Iterator[tuple[int, Exposure]]:
    """Read an exposure log, also while a server writes it."""
    decoder = msgspec.json.Decoder(Exposure)
    for number, payload in read_records(directory, start):
        yield number, decoder.decode(payload)


class ExposureLog:
    """The writer's side; see `SegmentLog`."""

    def __init__(self, directory: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._log = SegmentLog(directory, segment_bytes=segment_bytes)
        self._encoder = msgspec.json.Encoder()

    def append(self, exposures: Sequence[Exposure]) -> range:
        """Append durably; returns the record numbers."""
        return self._log.append([self._encoder.encode(exposure) for exposure in exposures])

    def read(self, start: int = 0) -> Iterator[tuple[int, Exposure]]:
        """See `read_exposures`."""
        return read_exposures(self._log.directory, start)

    def close(self) -> None:
        """Release the log."""
        self._log.close()
