"""Requests and answers that change items, as OpenAPI shows them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from recsys.catalog.changes import (
    MAX_ATTRIBUTES,
    MAX_DEPTH,
    MAX_NAME,
    MAX_STOCK,
    MAX_TEXT,
    MAX_TITLE,
)
from serving.schemas import MAX_TIME, WHOLE, Micros, Word

Time = Annotated[int, Field(ge=0, le=MAX_TIME), WHOLE]
Name = Annotated[str, Field(max_length=MAX_NAME)]


class ItemBody(BaseModel):
    """All attributes of an item; what is absent is unknown, whatever it was before."""

    model_config = ConfigDict(extra="forbid", strict=True)

    title: Annotated[str, Field(max_length=MAX_TITLE)] | None = Field(default=None, examples=["Red nail lacquer"])
    category_path: Annotated[list[Name], Field(max_length=MAX_DEPTH)] = Field(
        default_factory=list, description="From the root.", examples=[["Beauty", "Nails"]]
    )
    brand: Name | None = None
    price_micros: Micros | None = Field(default=None, description="Absent: unknown; price filters leave it out.")
    text: Annotated[str, Field(max_length=MAX_TEXT)] | None = Field(
        default=None, description="Further words. A new item needs a word in title, category, brand or text."
    )
    attributes: Annotated[dict[Word, Name], Field(max_length=MAX_ATTRIBUTES)] = Field(default_factory=dict)
    available_from: Time | None = Field(default=None, description="UTC microseconds, inclusive.")
    available_until: Time | None = Field(default=None, description="UTC microseconds, exclusive.")
    stock: Annotated[int, Field(ge=0, le=MAX_STOCK), WHOLE] | None = Field(
        default=None, description="With 0 it is not shown; absent: not counted."
    )


class ItemAnswer(BaseModel):
    """The change is on the disk, and every later request sees it."""

    model_config = ConfigDict(extra="forbid")

    request_id: str = Field(description="Of this request; also in the header X-Request-ID.")
    item_id: str
    result: Literal["created", "replaced", "deleted"]
    catalog_version: str = Field(description="The catalogue that holds the change: bundle and sequence number.")
