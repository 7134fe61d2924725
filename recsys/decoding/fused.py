"""The `fused` decoder: another decoder's best items, ranked anew with an item-to-item score of the history.

score(i) + weight * log(s(i) + floor), s of `recsys.decoding.neighbours`. What is not among the inner decoder's best is
not found; in return nothing is done in proportion to the catalogue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from recsys.decoding.decoder import DecodeResult, Ranked, check_request, extend
from recsys.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from recsys.decoding.decoder import Decoder
    from recsys.decoding.eligibility import Eligibility
    from recsys.decoding.log_prior import LogPrior
    from recsys.decoding.neighbours import Neighbours
    from recsys.decoding.trie import SidTrie

_BEHIND: Final = np.iinfo(np.int64).max  # where added items stand among equals


@dataclass(frozen=True, slots=True, eq=False)
class Fusion:
    """What is fused with a decoder's scores, and how.

    Attributes:
        neighbours: the item-to-item table.
        weight: of log(s + floor); 0 leaves the inner decoder's answers as they are.
        floor: added to s, so that an item without a common user keeps a finite score.
        decay: weight of an item per step back in the history.
        max_history: newest items that count.
        candidates: items asked of the inner decoder, or k where that is more.

    Raises:
        ConfigError: a value out of range.
    """

    neighbours: Neighbours
    weight: float
    floor: float
    decay: float
    max_history: int
    candidates: int

    def __post_init__(self) -> None:
        demands = (
            ("weight", 0 <= self.weight < math.inf, "0 or more"),
            ("floor", 0 < self.floor < math.inf, "more than 0"),
            ("decay", 0 < self.decay <= 1, "in (0, 1]"),
            ("max_history", self.max_history >= 1, "1 or more"),
            ("candidates", self.candidates >= 1, "1 or more"),
        )
        for field, holds, range_ in demands:
            if not holds:
                raise ConfigError(
                    f"must be {range_}", field=field, value=getattr(self, field), remedy="see docs/decoding.md"
                )

    def scores(
        self, histories: Sequence[npt.NDArray[np.integer]], ranked: Sequence[Ranked]
    ) -> list[npt.NDArray[np.float64]]:
        """Per answer (m,) float64: s of its items; see `Neighbours.scores`."""
        items = [answer.items for answer in ranked]
        return self.neighbours.scores(histories, items, decay=self.decay, max_history=self.max_history)


class Reranker:
    """Ranks an answer anew; equal scores go to the smaller semantic ID, then the larger prior, then the smaller index.

    Added items stand behind frozen ones of the same score, by their index.

    Args:
        trie: of the tokenizer the model was trained with.
        prior: (I,) order of preference among items that share a semantic ID; None means item index.
    """

    def __init__(self, trie: SidTrie, prior: npt.NDArray[np.number] | None = None) -> None:
        self._trie, self._prior = trie, prior

    def rank(
        self, found: Ranked, similarity: npt.NDArray[np.float64], *, weight: float, floor: float, k: int
    ) -> Ranked:
        """The k best by score + weight * log(similarity + floor).

        Args:
            found: an answer of m items.
            similarity: (m,) of its items, not negative.
            weight: of the similarity's logarithm.
            floor: more than 0.
            k: items wanted.

        Returns:
            min(k, m) of the items, with their new scores in the precision of the old.
        """
        scores = found.scores + weight * np.log(similarity + floor)
        scores = scores.astype(found.scores.dtype, copy=False)
        order = self._order(found.items.astype(np.int64), scores)[:k]
        return Ranked(found.items[order], scores[order])

    def _order(self, items: npt.NDArray[np.int64], scores: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
        frozen = items < self._trie.items
        known = items[frozen]
        leaf = np.full(len(items), _BEHIND)
        leaf[frozen] = self._trie.leaves(known)
        preference = np.zeros(len(items))
        if self._prior is not None:
            preference[frozen] = self._prior[known]
        return np.lexsort((items, -preference, leaf, -scores))


class FusedDecoder:
    """Another decoder, and a table of neighbours that ranks its best items anew.

    Args:
        inner: that finds the items.
        fusion: that ranks them.
        trie: of the tokenizer the model was trained with.
        prior: see `Reranker`.

    Raises:
        ConfigError: the table was made for another number of items.
    """

    name = "fused"

    def __init__(
        self, inner: Decoder, fusion: Fusion, trie: SidTrie, *, prior: npt.NDArray[np.number] | None = None
    ) -> None:
        if fusion.neighbours.count != trie.items:
            raise ConfigError(
                f"the item-to-item table must have {trie.items} rows",
                field="neighbours",
                value=fusion.neighbours.count,
                remedy="fit it on the data that the model was trained on",
            )
        self._inner, self._fusion = inner, fusion
        self._known = trie.items  # items that a history may hold
        self._reranker = Reranker(trie, prior)

    def add_items(self, codes: npt.NDArray[np.integer], text: npt.NDArray[np.float32]) -> bool:
        """See `recsys.decoding.decoder.ExtendsItems`; the table of neighbours has no row for them."""
        added = extend(self._inner, codes, text)
        self._known += len(codes) if added else 0
        return added

    def decode(
        self,
        histories: Sequence[npt.NDArray[np.integer]],
        *,
        k: int,
        beam: int,
        eligibility: Eligibility,
        log_prior: LogPrior | None = None,
    ) -> DecodeResult:
        """See `Decoder.decode`; the inner beam is as wide as the candidates, and the cost is the inner decoder's.

        A log-prior counts in the inner decoder: it decides what becomes a candidate and stays in the score.
        """
        check_request(k, beam)
        fusion = self._fusion
        if fusion.weight == 0:
            return self._inner.decode(histories, k=k, beam=beam, eligibility=eligibility, log_prior=log_prior)
        wanted = max(k, fusion.candidates)
        found = self._inner.decode(
            histories, k=wanted, beam=max(beam, wanted), eligibility=eligibility, log_prior=log_prior
        )
        similarity = fusion.scores([self._with_rows(history) for history in histories], found.ranked)
        ranked = [
            self._reranker.rank(answer, own, weight=fusion.weight, floor=fusion.floor, k=k)
            for answer, own in zip(found.ranked, similarity, strict=True)
        ]
        return DecodeResult(ranked, found.spent)

    def _with_rows(self, history: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
        """A history without added items; what is no item at all stays, and is refused."""
        items = np.asarray(history)
        return items[(items < self._fusion.neighbours.count) | (items >= self._known)]
