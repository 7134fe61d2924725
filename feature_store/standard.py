"""Views for every data set in the table contract; declare your own beside them and name that module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from feature_store.entries import ORDER_FIELDS
from feature_store.fields import Field, Kind
from feature_store.views import View, Views

if TYPE_CHECKING:
    from feature_store.reading import Reading

USER_RECENT: Final = View(
    name="user_recent",
    entity="user",
    fields=(
        Field("item_id", Kind.STRING),
        Field("action", Kind.STRING),
        Field("scene", Kind.STRING, optional=True),
    ),
    version=1,
    owner="recommendation",
    history=1_000,
    description="The newest events of a user, as in the events table.",
)
VIEWS: Final = Views([USER_RECENT])
_ITEM: Final = len(ORDER_FIELDS) + USER_RECENT.names.index("item_id")


def recent_items(reading: Reading) -> list[str]:
    """Item ids of a reading of `USER_RECENT`, oldest first; none where it is MISSING."""
    return [entry[_ITEM] for entry in reading.entries or ()]
