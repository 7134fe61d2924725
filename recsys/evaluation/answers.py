"""Answers to held-out cases: ranks and lists over the full catalogue, history masked or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from recsys.decoding.eligibility import Eligibility
from recsys.errors import DataError
from recsys.evaluation.metrics import padded_lists, ranks_from_ranked, ranks_from_scores, top_items

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from recsys.decoding.decoder import Decoder

VIEWS: Final = ("masked", "unmasked")
"""With `masked`, the items of the history are not recommended."""

TOP: Final = 50
_BATCH = 256


class _Scorer(Protocol):
    def score(self, histories: Sequence[npt.NDArray[np.integer]]) -> npt.NDArray[np.float32]: ...


@dataclass(frozen=True, slots=True)
class Answered:
    """What one method answered to N cases in one view.

    Attributes:
        ranks: (N,) int64 of the targets.
        lists: (N, 50) int32, -1 behind the end.
    """

    ranks: npt.NDArray[np.int64]
    lists: npt.NDArray[np.int32]

    @classmethod
    def empty(cls, cases: int) -> Answered:
        """Room for the answers to so many cases."""
        return cls(np.empty(cases, dtype=np.int64), np.empty((cases, TOP), dtype=np.int32))


def answer_by_scores(
    scorer: _Scorer, histories: Sequence[npt.NDArray[np.integer]], targets: npt.NDArray[np.integer]
) -> dict[str, Answered]:
    """Rank by the scores of all items, once for both views.

    Args:
        scorer: a baseline.
        histories: N arrays, oldest first.
        targets: (N,) items.
    """
    answered = {view: Answered.empty(len(targets)) for view in VIEWS}
    for begin in range(0, len(targets), _BATCH):
        rows = slice(begin, begin + _BATCH)
        scores = scorer.score(histories[rows])
        for view in VIEWS:
            mask = histories[rows] if view == "masked" else None
            answered[view].ranks[rows] = ranks_from_scores(scores, targets[rows], mask)
            answered[view].lists[rows] = top_items(scores, TOP, mask)
    return answered


def answer_by_decoder(
    decoder: Decoder,
    histories: Sequence[npt.NDArray[np.integer]],
    targets: npt.NDArray[np.integer],
    *,
    beam: int,
    view: str,
) -> Answered:
    """Rank by what a decoder lists; a target that is not among the 50 is missed.

    Args:
        decoder: over a trained model.
        histories: N arrays, oldest first.
        targets: (N,) items.
        beam: width.
        view: one of `VIEWS`.

    Raises:
        DataError: an answer whose scores rise or are not numbers; its ranks would mean nothing.
    """
    answered = Answered.empty(len(targets))
    for begin in range(0, len(targets), _BATCH):
        rows = slice(begin, begin + _BATCH)
        batch = histories[rows]
        eligibility = Eligibility(shared=None, excluded=batch if view == "masked" else None)
        ranked = decoder.decode(batch, k=TOP, beam=beam, eligibility=eligibility).ranked
        for row, answer in enumerate(ranked):
            if not (np.diff(answer.scores, append=-np.inf) <= 0).all():
                raise DataError("an answer does not stand best first", field="case", value=begin + row)
        answered.ranks[rows] = ranks_from_ranked(ranked, targets[rows])
        answered.lists[rows] = padded_lists(ranked, TOP)
    return answered
