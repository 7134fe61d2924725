"""The `fused` decoder: another decoder's best items, ranked anew with further evidence about them.

score(i) + weight * log(s(i) + floor) + second.weight * d(i): s of `recsys.decoding.neighbours`, d of a second model
where there is one (`recsys.decoding.second`). What is not among the inner decoder's best is not found; in return
nothing is done in proportion to the catalogue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import numpy as np

from recsys.decoding.decoder import DecodeResult, Ranked, check_request, extend
from recsys.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from recsys.decoding.decoder import Decoder, Spent
    from recsys.decoding.eligibility import Eligibility
    from recsys.decoding.log_prior import LogPrior
    from recsys.decoding.neighbours import Neighbours
    from recsys.decoding.trie import SidTrie

_PAGE: Final = "see docs/decoding.md"
_BEHIND: Final = np.iinfo(np.int64).max  # where added items stand among equals


class Evidence(NamedTuple):
    """What is known of the m items of one answer besides their scores.

    Attributes:
        similarity: (m,) float64, item-to-item, not negative; None = not asked.
        second: (m,) float64, of the second model; None = not asked.
    """

    similarity: npt.NDArray[np.float64] | None
    second: npt.NDArray[np.float64] | None


class CandidateScorer(Protocol):
    """What scores the candidates of a request; `recsys.decoding.second.SecondModel` is one."""

    count: int
    """Items that it knows."""

    def scores(
        self, histories: Sequence[npt.NDArray[np.integer]], candidates: Sequence[npt.NDArray[np.integer]]
    ) -> list[npt.NDArray[np.float64]]:
        """Per history the (m,) float64 scores of its candidates."""

    def positions(self, histories: Sequence[npt.NDArray[np.integer]]) -> int:
        """Sequence positions that it puts through a trunk for these histories."""


@dataclass(frozen=True, slots=True, eq=False)
class Second:
    """A second model that scores the candidates.

    Attributes:
        model: that scores them.
        weight: of its scores.

    Raises:
        ConfigError: the weight is out of range.
    """

    model: CandidateScorer
    weight: float

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ConfigError("must be 0 or more", field="second.weight", value=self.weight, remedy=_PAGE)


@dataclass(frozen=True, slots=True, eq=False)
class Fusion:
    """What is fused with a decoder's scores, and how.

    Attributes:
        neighbours: the item-to-item table.
        weight: of log(s + floor).
        floor: added to s, so that an item without a common user keeps a finite score.
        decay: weight of an item per step back in the history.
        max_history: newest items that count.
        candidates: items asked of the inner decoder, or k where that is more.
        second: a further model, None = none. Where no part has a weight the inner decoder's answers stay as they are.

    Raises:
        ConfigError: a value out of range, or the second model knows another number of items.
    """

    neighbours: Neighbours
    weight: float
    floor: float
    decay: float
    max_history: int
    candidates: int
    second: Second | None = None

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
                raise ConfigError(f"must be {range_}", field=field, value=getattr(self, field), remedy=_PAGE)
        if self.second is not None and self.second.model.count != self.neighbours.count:
            raise ConfigError(
                f"the second model must know {self.neighbours.count} items",
                field="second",
                value=self.second.model.count,
                remedy="train it on the data that the first was trained on",
            )

    @property
    def idle(self) -> bool:
        """Whether no part has a weight."""
        return self.weight == 0 and (self.second is None or self.second.weight == 0)

    def evidence(
        self, histories: Sequence[npt.NDArray[np.integer]], ranked: Sequence[Ranked], *, known: int
    ) -> list[Evidence]:
        """What the parts with a weight say of every answer's items.

        Args:
            histories: B histories, oldest first.
            ranked: B answers.
            known: items there are, those included that were added later; the table has no row for these.
        """
        items = [answer.items for answer in ranked]
        similarity: Sequence[npt.NDArray[np.float64] | None] = [None] * len(items)
        second: Sequence[npt.NDArray[np.float64] | None] = similarity
        if self.weight:
            rows = [self._with_rows(np.asarray(history), known) for history in histories]
            similarity = self.neighbours.scores(rows, items, decay=self.decay, max_history=self.max_history)
        if self.second is not None and self.second.weight:
            second = self.second.model.scores(histories, items)
        return [Evidence(*pair) for pair in zip(similarity, second, strict=True)]

    def worth(self, evidence: Evidence) -> npt.NDArray[np.float64] | float:
        """What is added to the scores of one answer; (m,), or 0 where nothing was asked."""
        total: npt.NDArray[np.float64] | float = 0.0
        if evidence.similarity is not None:
            total = total + self.weight * np.log(evidence.similarity + self.floor)
        if evidence.second is not None and self.second is not None:
            total = total + self.second.weight * evidence.second
        return total

    def _with_rows(self, items: npt.NDArray[np.integer], known: int) -> npt.NDArray[np.integer]:
        """A history without added items; what is no item at all stays, and is refused."""
        return items[(items < self.neighbours.count) | (items >= known)]


class Reranker:
    """Ranks an answer anew; equal scores go to the smaller semantic ID, then the larger prior, then the smaller index.

    Added items stand behind frozen ones of the same score, by their index.

    Args:
        trie: of the tokenizer the model was trained with.
        prior: (I,) order of preference among items that share a semantic ID; None means item index.
    """

    def __init__(self, trie: SidTrie, prior: npt.NDArray[np.number] | None = None) -> None:
        self._trie, self._prior = trie, prior

    def rank(self, found: Ranked, worth: npt.NDArray[np.float64] | float, *, k: int) -> Ranked:
        """The k best by score + worth.

        Args:
            found: an answer of m items.
            worth: (m,) of its items, or the same for all.
            k: items wanted.

        Returns:
            min(k, m) of the items, with their new scores in the precision of the old.
        """
        scores = (found.scores + worth).astype(found.scores.dtype, copy=False)
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
    """Another decoder, and what ranks its best items anew.

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
        second = self._fusion.second
        added = extend(self._inner, codes, text) and (second is None or extend(second.model, codes, text))
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
        """See `Decoder.decode`; the inner beam is as wide as the candidates.

        The cost is the inner decoder's, and a forward of the second model where there is one.

        A log-prior counts in the inner decoder: it decides what becomes a candidate and stays in the score.
        """
        check_request(k, beam)
        fusion = self._fusion
        if fusion.idle:
            return self._inner.decode(histories, k=k, beam=beam, eligibility=eligibility, log_prior=log_prior)
        wanted = max(k, fusion.candidates)
        found = self._inner.decode(
            histories, k=wanted, beam=max(beam, wanted), eligibility=eligibility, log_prior=log_prior
        )
        evidence = fusion.evidence(histories, found.ranked, known=self._known)
        ranked = [
            self._reranker.rank(answer, fusion.worth(own), k=k)
            for answer, own in zip(found.ranked, evidence, strict=True)
        ]
        return DecodeResult(ranked, self._spent(found.spent, histories))

    def _spent(self, inner: Spent, histories: Sequence[npt.NDArray[np.integer]]) -> Spent:
        """With the forward of the second model, which reads the same histories."""
        second = self._fusion.second
        if second is None or second.weight == 0:
            return inner
        tokens = inner.tokens + second.model.positions(histories)
        return replace(inner, forwards=inner.forwards + 1, tokens=tokens)
