"""Requests and answers of the HTTP API, as OpenAPI shows them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from recsys.errors import InputError
from recsys.retrieval.settings import VectorsName
from serving.paging import Page, read_cursor

MAX_N: Final = 500
MAX_TEXT: Final = 1_000  # characters of a search; encoders cut long before
MAX_HISTORY: Final = 1_000
MAX_EVENTS: Final = 1_000
# Inside int64, and exact as the double that OpenAPI documents write bounds with.
MAX_MICROS: Final = 10**18
MAX_TIME: Final = 10**17  # UTC microseconds, in the year 5138


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 10.0 is the integer 10."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _page(value: Any) -> Page:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "Input should be a valid string")
    try:
        return read_cursor(value)
    except InputError as error:
        raise PydanticCustomError("cursor", "{what}", {"what": f"{error.message}; {error.remedy}"}) from error


WHOLE: Final = BeforeValidator(_whole)  # stands behind the bounds, so that the JSON schema shows them
# What a catalog takes (256 bytes) may be clicked; the bound is in characters, because JSON schema counts those.
Identifier = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00]+$")]
Word = Annotated[str, Field(min_length=1, max_length=64)]
Name = Annotated[str, Field(max_length=256)]
Value = Annotated[int, Field(ge=-MAX_MICROS, le=MAX_MICROS), WHOLE]
Micros = Annotated[int, Field(ge=0, le=MAX_MICROS), WHOLE]
ItemIds = Annotated[list[str], Field(max_length=10_000)]
Categories = Annotated[list[Annotated[list[Name], Field(min_length=1, max_length=16)]], Field(max_length=100)]
Cap = Annotated[int, Field(ge=1, le=MAX_N), WHOLE]
# `format` says that not every text is a cursor; bounds beside it would say that some others are.
Cursor = Annotated[Page, PlainValidator(_page), WithJsonSchema({"type": "string", "format": "windfire-cursor"})]


class ServedBy(StrEnum):
    """The tier that began the answer."""

    NEZHA = "nezha"
    NEZHA_SMALL = "nezha_small"
    CACHED = "cached"
    ITEM_TO_ITEM = "item_to_item"
    POPULAR_SCENE = "popular_scene"
    POPULAR_MEMORY = "popular_memory"
    INDEX = "index"  # of similar and search; of a recommendation where the sources before it had nothing


class HistorySource(StrEnum):
    """Where the history of a recommendation comes from."""

    REQUEST = "request"
    STORE = "store"
    NONE = "none"


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Filters(_Request):
    """Conditions on items: alternatives inside one field, all fields together."""

    categories: Categories = Field(
        default_factory=list, description="Category paths from the root; an item matches at or below any of them.",
        examples=[[["Beauty", "Hair Care"]]],
    )  # fmt: skip
    brands: Annotated[list[Name], Field(max_length=1_000)] = Field(
        default_factory=list, description="Exact brand names."
    )
    price_min_micros: Micros | None = Field(default=None, description="Lowest price; items without one do not match.")
    price_max_micros: Micros | None = Field(default=None, description="Highest price; items without one do not match.")
    allow: ItemIds | None = Field(default=None, description="Only these items; an empty list allows none.")
    deny: ItemIds = Field(default_factory=list, description="None of these items.")


class SlateCaps(_Request):
    """How many items of a kind one answer may hold; an item without brand or category does not count."""

    brand: Cap | None = Field(default=None, description="Items of one brand at most.")
    category: Cap | None = Field(default=None, description="Items of one category at most.")
    category_depth: Annotated[int, Field(ge=1, le=16), WHOLE] | None = Field(
        default=None,
        description="Names of the category path, from the root, that make a category; absent: the whole path.",
    )


class RecommendRequest(_Request):
    """Whom to recommend to, how many items, and which may be shown."""

    user_id: Identifier | None = Field(default=None, description="Its stored history is read unless one is given.")
    history: list[str] | None = Field(
        default=None,
        description="Item ids, oldest first. Unknown ids are ignored and counted; the newest 1,000 known ones count.",
        examples=[["B0000530ED", "B00005JS5C"]],
    )
    n: Annotated[int, Field(ge=1, le=MAX_N), WHOLE] = Field(default=10, description="Items wanted.")
    scene: Word | None = Field(default=None, description="The surface of the app, such as home or cart.")
    filters: Filters = Field(default_factory=Filters)
    exclude_seen: bool = Field(default=True, description="Leave out every item of the history.")
    caps: SlateCaps = Field(
        default_factory=SlateCaps, description="Bounds of one answer; every page has them anew.",
        examples=[{"brand": 2, "category": 3}],
    )  # fmt: skip
    diversity: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.0, description="0: the order of the sources. Towards 1: items that are unlike those above them."
    )
    cursor: Cursor | None = Field(
        default=None,
        description="`next_cursor` of an answer: goes on behind it under its request_id. All other fields count as in "
        "any request: send the same ones again.",
    )


class AnswerItem(_Answer):
    """One recommended item."""

    item_id: str
    position: int = Field(ge=0, description="From 0 on the first page; goes on over the pages.")
    score: float = Field(description="Comparable within one source only.")
    source: str = Field(description="The decoder, cached, item_to_item, index, popular_scene or popular_memory.")
    title: str | None = Field(default=None, description="Absent where the catalog has none.")


class Counts(_Answer):
    """What was done with the request's ids."""

    requested: int = Field(ge=1)
    returned: int = Field(ge=0)
    history: int = Field(ge=0, description="Items of the history as given or stored.")
    history_unknown: int = Field(ge=0, description="Of these not in the catalog: ignored.")
    history_cut: int = Field(ge=0, description="Known items that are older than the newest 1,000: not used.")
    filter_unknown: int = Field(ge=0, description="Allowed and denied ids that are not in the catalog: ignored.")


class RecommendAnswer(_Answer):
    """Items, best first, and how they came about."""

    request_id: str = Field(
        description="Joins exposures and events. On the first page also in the header X-Request-ID; later pages keep "
        "it, while the header names the single HTTP request."
    )
    served_by: ServedBy
    decoder: str | None = Field(description="The decoder that ran; null where none was needed.")
    bundle_version: str
    catalog_version: str
    arms: dict[str, str] = Field(description="Experiment to assigned arm.")
    truncated: bool = Field(
        description="There are fewer than n items: no more are eligible, the caps let no more in, or the pages have "
        "shown 500."
    )
    next_cursor: str | None = Field(
        description="Send it as `cursor` for the next page; null where no item is left to show."
    )
    history_source: HistorySource = Field(description="Whose history this follows: the request's, a stored one, none.")
    history_missing: str | None = Field(
        description="Why no stored history was used (absent, deleted, deadline, unavailable, corrupt, unknown_format); "
        "null where one was used or none was asked for."
    )
    items: list[AnswerItem]
    counts: Counts


class SimilarRequest(_Request):
    """Which item, how many like it, and which may be shown."""

    item_id: Identifier = Field(description="The item itself is not answered.", examples=["B0000530ED"])
    n: Annotated[int, Field(ge=1, le=MAX_N), WHOLE] = Field(default=10, description="Items wanted.")
    vectors: VectorsName | None = Field(
        default=None, description="What is compared; absent: given, else collaborative, else text vectors of the item."
    )
    filters: Filters = Field(default_factory=Filters)


class SearchRequest(_Request):
    """Which text, how many items for it, and which may be shown."""

    text: Annotated[str, Field(min_length=1, max_length=MAX_TEXT, pattern=r"\S")] = Field(
        description="What is looked for, in words.", examples=["red nail lacquer"]
    )
    n: Annotated[int, Field(ge=1, le=MAX_N), WHOLE] = Field(default=10, description="Items wanted.")
    filters: Filters = Field(default_factory=Filters)


class FoundItem(_Answer):
    """One item that was found."""

    item_id: str
    position: int = Field(ge=0, description="From 0.")
    score: float = Field(description="Cosine of the compared vectors.")
    source: str = Field(description="The vectors that were compared: given, collaborative or text.")
    title: str | None = Field(default=None, description="Absent where the catalog has none.")


class FoundCounts(_Answer):
    """What was done with the request's ids."""

    requested: int = Field(ge=1)
    returned: int = Field(ge=0)
    filter_unknown: int = Field(ge=0, description="Allowed and denied ids that are not in the catalog: ignored.")


class FoundAnswer(_Answer):
    """Items, nearest first."""

    request_id: str = Field(description="Joins exposures, events and logs; also in the header X-Request-ID.")
    served_by: Literal[ServedBy.INDEX]
    bundle_version: str
    catalog_version: str
    truncated: bool = Field(description="Fewer than n eligible items have such a vector.")
    items: list[FoundItem]
    counts: FoundCounts


class EventRow(_Request):
    """Something a user did; the bounds keep a row inside what a record of the event log may hold."""

    event_id: Identifier = Field(
        description="The first row with an id wins; repetitions among the newest 200,000 events are duplicates."
    )
    user_id: Identifier
    item_id: Identifier
    action: Word = Field(examples=["click"])
    time: Annotated[int, Field(ge=1, le=MAX_TIME), WHOLE] | None = Field(
        default=None, description="UTC microseconds since 1970; now where absent."
    )
    scene: Word | None = None
    value_micros: Value | None = None
    request_id: Identifier | None = Field(default=None, description="The recommendation that this answers.")
    position: Annotated[int, Field(ge=0, le=2**31 - 1), WHOLE] | None = None
    attributes: dict[Word, Name] = Field(default_factory=dict, max_length=24)


class EventsRequest(_Request):
    """A batch of events."""

    events: list[EventRow] = Field(min_length=1, max_length=MAX_EVENTS)


class EventResult(_Answer):
    """What became of one row."""

    event_id: str
    status: Literal["accepted", "duplicate", "rejected"]
    reason: Literal["time_in_future"] | None = None


class EventsAnswer(_Answer):
    """Results in the order of the rows; accepted rows are on the disk."""

    accepted: int = Field(ge=0)
    duplicate: int = Field(ge=0)
    rejected: int = Field(ge=0)
    results: list[EventResult]


class Health(_Answer):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(_Answer):
    """Whether requests should be sent here, why not, and what runs."""

    ready: bool
    reasons: list[str] = Field(description="Empty when ready.")
    warnings: list[str] = Field(description="What needs attention although requests are answered.")
    bundle_version: str | None
    catalog_version: str | None
    decoder: str | None
    canary_version: str | None = Field(description="The bundle that answers a share of the users; null: there is none.")
    shadow_version: str | None = Field(description="The bundle that answers unseen, to be compared; null: none.")
