"""The table contract: what every importer writes and every job reads.

Ids are strings, times are UTC microseconds since the epoch (int64), money is integer micros. The canonical
order of events is (user_id, time, seq); seq is the event's position in its source, counted per user. A source
without times has time = seq and says `time_is_order` in its manifest.

On disk a data set is a directory: one folder of Parquet files per table (items, users, events, rejected) and
`manifest.json` (see `TablesManifest`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from recsys.errors import ConfigError, DataError
from recsys.storage import read_json, write_json_atomically

if TYPE_CHECKING:
    from pathlib import Path

TABLES_FORMAT: Final = "windfire.tables/1"

_ATTRIBUTES: Final = pa.map_(pa.string(), pa.string())

ITEMS: Final = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("category_path", pa.list_(pa.string())),
        pa.field("brand", pa.string()),
        pa.field("price_micros", pa.int64()),
        pa.field("text", pa.string()),
        pa.field("created_at", pa.int64()),
        pa.field("available_from", pa.int64()),
        pa.field("available_until", pa.int64()),
        pa.field("attributes", _ATTRIBUTES),
    ]
)
USERS: Final = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("created_at", pa.int64()),
        pa.field("attributes", _ATTRIBUTES),
    ]
)
EVENTS: Final = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("time", pa.int64(), nullable=False),
        pa.field("created_at", pa.int64()),
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("scene", pa.string()),
        pa.field("action", pa.string(), nullable=False),
        pa.field("value_micros", pa.int64()),
        pa.field("request_id", pa.string()),
        pa.field("position", pa.int32()),
        pa.field("attributes", _ATTRIBUTES),
    ]
)
REJECTED: Final = pa.schema(
    [
        pa.field("table", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # file name, without its directory
        pa.field("line", pa.int64(), nullable=False),  # from 1; row number for binary sources
        pa.field("reason", pa.string(), nullable=False),  # a `RejectReason`
        pa.field("detail", pa.string(), nullable=False),  # names the field and the value
        pa.field("raw", pa.string()),  # the row as read, undecodable bytes escaped, cut to 2,000 characters
    ]
)
TABLES: Final[dict[str, pa.Schema]] = {"items": ITEMS, "users": USERS, "events": EVENTS, "rejected": REJECTED}


class Action(StrEnum):
    """What a user did; any other lower-case word is allowed and never counts as positive by default."""

    IMPRESSION = "impression"
    CLICK = "click"
    CART = "cart"
    PURCHASE = "purchase"
    LIKE = "like"


POSITIVE_ACTIONS: Final = (Action.CLICK, Action.CART, Action.PURCHASE, Action.LIKE)


class RejectReason(StrEnum):
    """Why a row went to the rejected table."""

    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    BAD_TIME = "bad_time"
    BAD_ENCODING = "bad_encoding"
    BAD_SYNTAX = "bad_syntax"
    DUPLICATE_EVENT_ID = "duplicate_event_id"
    DUPLICATE_ITEM_ID = "duplicate_item_id"
    DUPLICATE_USER_ID = "duplicate_user_id"
    UNKNOWN_ITEM = "unknown_item"


@dataclass(frozen=True, slots=True)
class TableCounts:
    """Rows of one table: read = written + rejected."""

    read: int
    written: int
    rejected: int


@dataclass(frozen=True, slots=True)
class TablesManifest:
    """What an import did; stands as manifest.json beside the tables.

    Attributes:
        dataset: the importer's or the user's name for the source.
        time_is_order: the source has no times; `time` equals `seq` and means order only.
        sources: file name to SHA-256.
        counts: per table.
        reasons: number of rejected rows per reason.
        notes: counted oddities that reject nothing (items without text, ...).
        line_ids: files of the log with rows that have no event_id and are called FILE:LINE.
        seconds: wall time of the import.
    """

    dataset: str
    time_is_order: bool
    sources: dict[str, str]
    counts: dict[str, TableCounts]
    reasons: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    line_ids: list[str] = field(default_factory=list)
    seconds: float = 0.0
    format: str = TABLES_FORMAT

    def save(self, directory: Path) -> None:
        """Write manifest.json into `directory`."""
        write_json_atomically(directory / "manifest.json", asdict(self))

    @classmethod
    def load(cls, directory: Path) -> TablesManifest:
        """Read manifest.json from a data set's directory.

        Raises:
            DataError: no manifest there, or one of another format.
        """
        path = directory / "manifest.json"
        if not path.is_file():
            raise DataError(
                "this directory holds no imported tables",
                field="data",
                value=str(directory),
                remedy="run `windfire import` or `windfire simulate` first",
            )
        try:
            value: Any = read_json(path)
        except ValueError as error:
            raise DataError(
                f"manifest.json is not JSON: {error}",
                field="data",
                value=str(directory),
                remedy="import the source again",
            ) from error
        found = value.get("format") if isinstance(value, dict) else None
        if found != TABLES_FORMAT:
            raise DataError(
                f"the tables have another format than {TABLES_FORMAT}",
                field="format",
                value=found,
                remedy="name a directory of `windfire import`, or import the source again with this version",
            )
        counts = {name: TableCounts(**row) for name, row in value.pop("counts").items()}
        return cls(counts=counts, **value)


def tables_place(out: Path) -> Path:
    """Where tables may be written: the absolute form of a directory that is absent, empty or holds tables.

    Writing replaces the directory as a whole, so anything else in it would be lost.

    Raises:
        ConfigError: it holds something else.
    """
    place = out.resolve()
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return place
    try:
        TablesManifest.load(place)
    except DataError as error:
        raise ConfigError(
            "this path holds something else than tables",
            field="out",
            value=str(out),
            remedy="choose a new directory",
        ) from error
    return place
