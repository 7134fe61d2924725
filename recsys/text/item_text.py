"""The one text by which an item is known to text encoders, offline and when an item is upserted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

CATEGORY_SEPARATOR = " > "
_PART_SEPARATOR = ". "


def item_text(
    title: str | None, category_path: Sequence[str | None] | None, brand: str | None, text: str | None
) -> str:
    """Join title, category path, brand and text, in this order, leaving out what is missing or blank.

    Without title and text, category and brand remain; without anything the result is empty.
    """
    path = CATEGORY_SEPARATOR.join(part.strip() for part in category_path or () if part and part.strip())
    parts = (title, path, brand, text)
    return _PART_SEPARATOR.join(part.strip() for part in parts if part and part.strip())
