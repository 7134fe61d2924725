"""The durable log of exposures: what was answered, joinable with events by request_id."""

from __future__ import annotations

import os
from math import isfinite
from typing import TYPE_CHECKING

import msgspec

from recsys.errors import InputError
from recsys.event_log.segment_log import SEGMENT_BYTES, SegmentLog
from recsys.event_log.segments import erased, read_records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path


class Exposure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One answer.

    Pages of one recommendation have its request_id in common. `page`, `caps` and `diversity` came later: a record
    without them is read with their defaults, and a default is not written.

    Attributes:
        request_id: joins with the request_id of events.
        user_id: None for an anonymous request.
        time: UTC microseconds.
        scene: of the request.
        items: item ids in the order shown.
        positions: one per item, from 0 on the first page and on over the pages.
        scores: one per item; comparable inside one source only.
        sources: what proposed each item.
        propensities: probability that the policy shows the item at its position.
        served_by: the tier that answered.
        decoder: None where none ran.
        bundle_version: of the weights.
        catalog_version: of the catalog's state.
        arms: experiment to arm.
        page: from 0.
        caps: items of one `brand` and one `category` that the request allowed an answer, and `category_depth`; empty =
            any number.
        diversity: that the request asked for; with one above 0 scores need not fall within a source.
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
    page: int = 0
    caps: dict[str, int] = {}
    diversity: float = 0.0

    def __post_init__(self) -> None:
        for name in ("positions", "scores", "sources", "propensities"):
            values = getattr(self, name)
            if len(values) != len(self.items):
                raise InputError(
                    f"an exposure has {len(self.items)} items and another number of {name}",
                    field=name,
                    value=values,
                    remedy="give one per item",
                )
        if not all(map(isfinite, self.scores)):
            raise InputError("a score is a finite number", field="scores", value=self.scores, remedy="leave it out")
        if not all(0.0 < propensity <= 1.0 for propensity in self.propensities):
            raise InputError(
                "what was shown had a probability above 0 and at most 1",
                field="propensities",
                value=self.propensities,
                remedy="give 1 where nothing is drawn at random",
            )


def read_exposures(directory: Path, start: int = 0) -> Iterator[tuple[int, Exposure]]:
    """Read an exposure log in any process, also while a server writes it: (number, exposure)."""
    return _decode(read_records(directory, start))


class ExposureLog:
    """The writer's side; any number of threads and tasks append through it.

    Args:
        directory: of the log.
        segment_bytes: see `SegmentLog`.
        flush: see `SegmentLog`.

    Attributes:
        records: the log below, for its offsets and retention.
    """

    def __init__(
        self, directory: Path, *, segment_bytes: int = SEGMENT_BYTES, flush: Callable[[int], None] = os.fsync
    ) -> None:
        self.records = SegmentLog(directory, segment_bytes=segment_bytes, flush=flush)

    def append(self, exposures: Sequence[Exposure]) -> range:
        """Append durably; returns the record numbers. Raises what `SegmentLog.submit` says."""
        return self.records.append([_ENCODER.encode(exposure) for exposure in exposures])

    async def append_async(self, exposures: Sequence[Exposure]) -> range:
        """Like `append`, without blocking the event loop while the disk works."""
        return await self.records.append_async([_ENCODER.encode(exposure) for exposure in exposures])

    def read(self, start: int = 0) -> Iterator[tuple[int, Exposure]]:
        """Yield durable exposures as (number, exposure)."""
        return _decode(self.records.read(start))

    def close(self) -> None:
        """Release the log."""
        self.records.close()


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Exposure)


def _decode(records: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, Exposure]]:
    for number, record in records:
        if not erased(record):
            yield number, _DECODER.decode(record)
