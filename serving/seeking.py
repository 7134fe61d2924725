"""The bundle's indexes: asked for similar items or for a text in the place of all sources, and as one of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from recsys.errors import InputError
from serving.schemas import ServedBy

if TYPE_CHECKING:
    import numpy.typing as npt

    from recsys.retrieval.folder import Retrieval
    from recsys.retrieval.vector_index import Found
    from serving.engine import EngineRequest, Refusal, Seek
    from serving.slate import Slate


def without_itself(request: EngineRequest) -> EngineRequest:
    """The request as it is planned: an item is not similar to itself, and no history is read or left out."""
    seek = request.seek
    if seek is None:
        return request
    own = () if seek.item_id is None else (seek.item_id,)
    return replace(request, history=(), deny=(*request.deny, *own))


def fill_from_indexes(slate: Slate, seek: Seek, row: int, retrieval: Retrieval | None, *, items: int) -> Refusal | None:
    """Fill a slate with what is near.

    Args:
        slate: empty; its eligibility holds inside the search.
        seek: what to look for.
        row: index of the item in the catalogue; -1 where it is not there, or a text is looked for.
        retrieval: the bundle's indexes.
        items: I, of the catalogue.

    Returns:
        Why it could not be looked for.
    """
    if seek.item_id is not None and row < 0:
        return "unknown_item"
    wanted = "text" if seek.item_id is None else seek.vectors
    if retrieval is None or not retrieval.indexes or (wanted is not None and wanted not in retrieval.indexes):
        return "no_index"
    if seek.item_id is None and retrieval.encoder is None:
        return "no_encoder"
    mask = _mask(slate, items)
    if seek.item_id is not None:
        similar = retrieval.similar(row, slate.size, mask, seek.vectors)
        if similar is not None:
            _add(slate, similar.found, similar.vectors)
        return None
    try:
        _add(slate, retrieval.search(seek.text or "", slate.size, mask), "text")
    except InputError as error:
        if error.field != "text":
            raise
        # the encoder finds nothing in the text, and nothing is near to it
    return None


def fill_from_history(slate: Slate, history: npt.NDArray[np.int32], retrieval: Retrieval, *, items: int) -> None:
    """Fill the open places of a slate with items near those of a history.

    Args:
        slate: with what the sources before chose; its eligibility holds inside the search.
        history: item indices, oldest first.
        retrieval: the bundle's indexes.
        items: I, of the catalogue.
    """
    mask = _mask(slate, items)
    if slate.items:
        mask = np.ones(items, dtype=np.bool_) if mask is None else mask.copy()
        mask[slate.items] = False
    similar = retrieval.candidates(history.tolist(), slate.open, mask)
    if similar is not None:
        _add(slate, similar.found, ServedBy.INDEX)


def _add(slate: Slate, found: Found, source: str) -> None:
    slate.add(found.rows.astype(np.int32), found.scores, source)


def _mask(slate: Slate, items: int) -> npt.NDArray[np.bool_] | None:
    """(I,) what the slate may hold; None = everything."""
    if not len(slate.excluded):
        return slate.shared
    mask = np.ones(items, dtype=np.bool_) if slate.shared is None else slate.shared.copy()
    mask[slate.excluded] = False
    return mask
