from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest

from recsys.decoding.decoder import DecodeResult, Ranked, Spent
from recsys.errors import DataError
from recsys.evaluation.answers import TOP, VIEWS, answer_by_decoder, answer_by_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recsys.decoding.eligibility import Eligibility

ITEMS = 80


class Sums:
    """Scores are a fixed random row per last item; also a decoder over the same scores."""

    name = "sums"

    def __init__(self) -> None:
        self.table = np.random.default_rng(1).random((ITEMS, ITEMS), dtype=np.float32)

    def score(self, histories: Sequence[npt.NDArray[np.integer]]) -> npt.NDArray[np.float32]:
        return self.table[[history[-1] for history in histories]]

    def decode(
        self, histories: Sequence[npt.NDArray[np.integer]], *, k: int, beam: int, eligibility: Eligibility, **_: object
    ) -> DecodeResult:
        scores = self.score(histories).copy()
        for row, excluded in enumerate(eligibility.excluded or []):
            scores[row, excluded] = -np.inf
        order = np.argsort(-scores, axis=1)[:, :k].astype(np.int32)
        kept = [line[row[line] > -np.inf] for line, row in zip(order, scores, strict=True)]
        ranked = [Ranked(line, row[line]) for line, row in zip(kept, scores, strict=True)]
        return DecodeResult(ranked, Spent(0, 0))


class Reversed(Sums):
    """Lists its answers worst first."""

    def decode(
        self, histories: Sequence[npt.NDArray[np.integer]], *, k: int, beam: int, eligibility: Eligibility, **_: object
    ) -> DecodeResult:
        straight = super().decode(histories, k=k, beam=beam, eligibility=eligibility)
        return DecodeResult([Ranked(one.items[::-1], one.scores[::-1]) for one in straight.ranked], straight.spent)


def test_an_answer_out_of_order_is_an_error() -> None:
    histories = [np.array([1], np.int32), np.array([2], np.int32)]
    with pytest.raises(DataError, match="best first"):
        answer_by_decoder(Reversed(), histories, np.array([3, 4]), beam=1, view="masked")


@pytest.mark.parametrize("view", VIEWS)
def test_a_decoder_and_the_scores_behind_it_are_measured_alike(view: str) -> None:
    rng = np.random.default_rng(2)
    histories = [rng.choice(ITEMS, size=40, replace=False).astype(np.int32) for _ in range(300)]
    targets = rng.integers(ITEMS, size=300)
    model = Sums()
    scored = answer_by_scores(model, histories, targets)[view]
    decoded = answer_by_decoder(model, histories, targets, beam=1, view=view)
    assert np.array_equal(scored.lists, decoded.lists)
    assert decoded.lists.shape == (300, TOP)
    within = scored.ranks <= TOP
    assert np.array_equal(scored.ranks[within], decoded.ranks[within])
    assert (decoded.ranks[~within] > TOP).all()
    assert within.any()
    assert not within.all()
