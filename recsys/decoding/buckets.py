"""From leaves of the trie to items: several items may share one semantic ID."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from recsys.decoding.decoder import Ranked
from recsys.decoding.ragged import ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from recsys.decoding.added import Newcomers
    from recsys.decoding.eligibility import RequestMask
    from recsys.decoding.trie import SidTrie

_EVERY = np.empty(0, dtype=np.uint8)
_NOTHING = Ranked(np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32))


class Found(NamedTuple):
    """What a search found for one request.

    Attributes:
        leaves: (m,) leaf nodes, best first.
        scores: (m,) their scores; with a log-prior, the largest value below each is in it.
        newcomers: the added items that it met; None where there is none.
    """

    leaves: npt.NDArray[np.int64]
    scores: npt.NDArray[np.floating]
    newcomers: Newcomers | None = None


class Buckets:
    """The items of each leaf in the order of a prior, ties to the smaller item index.

    Args:
        trie: the model's trie.
        prior: (I,) any order of preference inside a bucket, for example counts in training; None means item index.
    """

    def __init__(self, trie: SidTrie, prior: npt.NDArray[np.number] | None = None) -> None:
        self._trie = trie if prior is None else trie.preferring(prior)

    def expand(self, found: Found, mask: RequestMask, k: int) -> Ranked:
        """The first k items that may be shown; all items of a leaf carry the leaf's score, and their own log-prior.

        Args:
            found: by the search.
            mask: what the request may show.
            k: items wanted.
        """
        leaves, scores, newcomers = found
        if newcomers is None and mask.bounds is None and mask.added is None:
            k = min(k, self._trie.items)  # places for so many are laid out
            shared = _EVERY if mask.live.shared is None else mask.live.shared
            return Ranked(*self._trie.first_items(leaves, scores, shared, mask.excluded, k))
        start = self._trie.starts(leaves)
        counts = self._trie.starts(leaves + 1) - start
        items = self._trie.leaf_item.take(ranges(start, counts))
        values = np.repeat(scores, counts)
        if mask.bounds is not None:
            below = mask.bounds.prior.values[items] - np.repeat(mask.bounds.below(self._trie.levels, leaves), counts)
            values = values + below.astype(values.dtype, copy=False)
        if newcomers is not None:
            more, theirs = newcomers.found()
            items = np.concatenate([items, more])
            values = np.concatenate([values, theirs.astype(values.dtype)])
        kept = np.flatnonzero(mask.keeps(items))
        if mask.bounds is not None or newcomers is not None:
            kept = kept[np.argsort(-values[kept], kind="stable")]
        kept = kept[:k]
        return Ranked(items[kept].astype(np.int32), values[kept])


def fill(
    search: Callable[[list[int], int], Sequence[Found]],
    buckets: Buckets,
    masks: Sequence[RequestMask],
    *,
    k: int,
    beam: int,
    widest: int,
) -> tuple[list[Ranked], int]:
    """Search, and search again with twice the beam where it held fewer items than were wanted and eligible.

    Args:
        search: rows of the batch and a beam width in; what it found per row out.
        buckets: the items of the leaves.
        masks: what each row may show.
        k: items wanted.
        beam: the first width.
        widest: the width at which a beam holds every prefix.

    Returns:
        One answer per row, and how many searches had to be repeated.
    """
    answers: list[Ranked | None] = [None] * len(masks)
    pending = [row for row, mask in enumerate(masks) if mask.eligible]
    width, widened = beam, 0
    while pending:
        for row, found in zip(pending, search(pending, width), strict=True):
            answers[row] = buckets.expand(found, masks[row], k)
        if width >= widest:
            break
        pending = [row for row in pending if _short(answers[row], masks[row], k)]
        widened += len(pending)
        width *= 2
    return [_NOTHING if answer is None else answer for answer in answers], widened


def _short(answer: Ranked | None, mask: RequestMask, k: int) -> bool:
    return answer is None or len(answer.items) < min(k, mask.eligible)
