"""The slate that the sources fill, and its order where the request wants one of unlike items."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from serving.diversity import mmr, similarities
from serving.layout import Caps
from serving.slate import Slate

if TYPE_CHECKING:
    import numpy.typing as npt

    from recsys.bundle.bundle import Bundle
    from serving.engine import EngineRequest
    from serving.live_items import LiveItems


def opened(
    request: EngineRequest, shared: npt.NDArray[np.bool_] | None, excluded: npt.NDArray[np.int32], live: LiveItems
) -> Slate:
    """An empty slate; for a request that wants diversity a longer one without caps, of which `arranged` chooses."""
    layout = request.layout
    if layout.diversity:
        return Slate(layout.candidates(request.n), shared, excluded)
    return Slate(request.n, shared, excluded, caps=Caps(layout, live.rows.labels) if layout.capped else None)


def arranged(pool: Slate, request: EngineRequest, bundle: Bundle, live: LiveItems) -> Slate:
    """The items of a filled slate that unlike each other stand highest, under the request's caps.

    Args:
        pool: see `opened`.
        request: wants diversity.
        bundle: with the items' vectors.
        live: the items as they are now.

    Returns:
        A slate that sources may fill further where the caps passed over too many.
    """
    layout, items = request.layout, np.array(pool.items, dtype=np.int32)
    caps = Caps(layout, live.rows.labels) if layout.capped else None
    chosen = mmr(
        similarities(items, bundle, live),
        diversity=layout.diversity,
        wanted=pool.size,
        n=request.n,
        caps=caps,
        items=items,
    )
    return Slate(
        request.n,
        pool.shared,
        pool.excluded,
        [pool.items[place] for place in chosen],
        [pool.scores[place] for place in chosen],
        [pool.sources[place] for place in chosen],
        caps=caps,
    )
