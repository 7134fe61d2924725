"""What may happen to items, as front-end and engine say it to each other."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from recsys.catalog.changes import Delete, Upsert  # msgspec reads the annotations

Outcome = Literal["created", "replaced", "deleted", "exists", "missing", "no_encoder", "no_words"]


class ItemChange(msgspec.Struct, frozen=True, kw_only=True):
    """A change asked of the engine.

    Attributes:
        change: an upsert without what its words are encoded to, or a deletion; its time is when it is written.
        only_new: refuse an upsert of an item that is there.
    """

    change: Upsert | Delete
    only_new: bool = False


class ItemChanged(msgspec.Struct, frozen=True, kw_only=True):
    """What became of it.

    Attributes:
        outcome: what was done; the last four say why nothing was.
        catalog_version: the catalogue that holds it, or in which it was refused.
        reason: of a refusal, for operators.
    """

    outcome: Outcome
    catalog_version: str
    reason: str = ""


class Changes(Protocol):
    """Takes changes of items."""

    async def change(self, change: ItemChange) -> ItemChanged:
        """Make a change; it is durable, and the next request sees it, when this returns.

        Raises:
            InputError: a value is out of its range; names the field.
            UnavailableError: no bundle, the disk refuses, or another process writes for too long.
        """
