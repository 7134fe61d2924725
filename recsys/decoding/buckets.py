"""From leaves of the trie to items: several items may share one semantic ID."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recsys.decoding.decoder import Ranked
from recsys.decoding.ragged import ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from recsys.decoding.eligibility import RequestMask
    from recsys.decoding.trie import SidTrie

Found = tuple["npt.NDArray[np.int64]", "npt.NDArray[np.floating]"]

_NOTHING = Ranked(np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32))


class Buckets:
    """The items of each leaf in the order of a prior, ties to the smaller item index.

    Args:
        trie: the model's trie.
        prior: (I,) any order of preference inside a bucket, for example counts in training; None means item index.
    """

    def __init__(self, trie: SidTrie, prior: npt.NDArray[np.number] | None = None) -> None:
        self._start = trie.bucket_start
        self._items = trie.bucket_items
        if prior is not None:
            leaf = trie.item_node[self._items, -1]
            self._items = self._items[np.lexsort((self._items, -np.asarray(prior)[self._items], leaf))]

    def expand(
        self, leaves: npt.NDArray[np.integer], scores: npt.NDArray[np.floating], mask: RequestMask, k: int
    ) -> Ranked:
        """The first k items that may be shown; all items of a leaf carry the leaf's score, and their own log-prior.

        Args:
            leaves: (m,) leaf nodes, best first.
            scores: (m,) their scores; with a log-prior, the largest one below each is in it.
            mask: what the request may show.
            k: items wanted.
        """
        start = self._start[leaves]
        counts = self._start[leaves + 1] - start
        items = self._items[ranges(start, counts)]
        kept = np.flatnonzero(mask.keeps(items))
        values = np.repeat(scores, counts)
        prior = mask.log_prior
        if prior is None:
            kept = kept[:k]
        else:
            below = prior.values[items] - np.repeat(prior.bounds[-1][leaves], counts)
            values = values + below.astype(values.dtype, copy=False)
            kept = kept[np.argsort(-values[kept], kind="stable")[:k]]
        return Ranked(items[kept], values[kept])


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
        search: rows of the batch and a beam width in; per row the leaves and their scores out, best first.
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
        for row, (leaves, scores) in zip(pending, search(pending, width), strict=True):
            answers[row] = buckets.expand(leaves, scores, masks[row], k)
        if width >= widest:
            break
        pending = [row for row in pending if _short(answers[row], masks[row], k)]
        widened += len(pending)
        width *= 2
    return [_NOTHING if answer is None else answer for answer in answers], widened


def _short(answer: Ranked | None, mask: RequestMask, k: int) -> bool:
    return answer is None or len(answer.items) < min(k, mask.eligible)
