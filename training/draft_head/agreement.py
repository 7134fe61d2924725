"""How far a fitted head answers as the model's own beam does."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from recsys.decoding.building import build_decoder
from recsys.decoding.eligibility import Eligibility

if TYPE_CHECKING:
    import numpy.typing as npt

    from recsys.datasets.prepared import PreparedData
    from recsys.decoding.decoder import Decoder
    from recsys.decoding.trie import SidTrie
    from recsys.models import PromptedRecommender

K: Final = 10
_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class Agreement:
    """Head against beam, the history not recommended.

    Attributes:
        users: asked.
        top1: share of them with the same first item.
        top10: mean share of the beam's first ten that the head's first ten hold.
        ndcg_head: NDCG@10 of the held-out next items, None where none are held out.
        ndcg_beam: the beam's.
    """

    users: int
    top1: float
    top10: float
    ndcg_head: float | None
    ndcg_beam: float | None

    def metrics(self) -> dict[str, float]:
        """By name, for a manifest."""
        names = {"top1": "top1", "top10": "top10", "ndcg_head": "ndcg@10", "ndcg_beam": "ndcg@10.beam"}
        values = asdict(self)
        return {f"valid.{name}": values[field] for field, name in names.items() if values[field] is not None}


class AgainstBeam:
    """The beam's answers, found once: the backbone does not change.

    Args:
        model: imported.
        trie: of its semantic IDs.
        data: whose validation users are asked; where none has a held-out item, training histories.
        users: at most.
        beam: width of both.
    """

    def __init__(self, model: PromptedRecommender, trie: SidTrie, data: PreparedData, *, users: int, beam: int) -> None:
        self._model, self._trie, self._beam, self._prior = model, trie, beam, data.train_counts
        _, histories, targets = data.sequences.targets("valid")
        self._targets: npt.NDArray[np.int32] | None = targets
        if not len(targets):
            histories, self._targets = _training_histories(data), None
        chosen = np.unique(np.linspace(0, len(histories) - 1, min(users, len(histories))).astype(int))
        chosen = chosen[np.argsort([len(histories[row]) for row in chosen], kind="stable")]  # little padding
        self._histories = [histories[row] for row in chosen]
        if self._targets is not None:
            self._targets = self._targets[chosen]
        self._wanted = self._lists(build_decoder(model, trie, name="beam", prior=self._prior))

    def measure(self) -> Agreement:
        """Compare the head as it is now."""
        model, was = self._model, self._model.drafted
        model.drafted = True
        found = self._lists(build_decoder(model, self._trie, name="nezha", prior=self._prior))
        model.drafted = was
        pairs = list(zip(self._wanted, found, strict=True))
        return Agreement(
            users=len(pairs),
            top1=float(np.mean([len(ours) > 0 and len(theirs) > 0 and theirs[0] == ours[0] for theirs, ours in pairs])),
            top10=float(np.mean([len(np.intersect1d(theirs, ours)) / max(len(theirs), 1) for theirs, ours in pairs])),
            ndcg_head=self._ndcg(found),
            ndcg_beam=self._ndcg(self._wanted),
        )

    def _lists(self, decoder: Decoder) -> list[npt.NDArray[np.int32]]:
        lists = []
        for begin in range(0, len(self._histories), _BATCH):
            batch = self._histories[begin : begin + _BATCH]
            eligibility = Eligibility(shared=None, excluded=batch)
            answer = decoder.decode(batch, k=K, beam=self._beam, eligibility=eligibility)
            lists += [ranked.items for ranked in answer.ranked]
        return lists

    def _ndcg(self, lists: list[npt.NDArray[np.int32]]) -> float | None:
        if self._targets is None:
            return None
        hits = [np.flatnonzero(items == target) for items, target in zip(lists, self._targets, strict=True)]
        return float(np.mean([(1.0 / np.log2(hit + 2.0)).sum() for hit in hits]))


def _training_histories(data: PreparedData) -> list[npt.NDArray[np.int32]]:
    every = (data.sequences.training(user) for user in range(data.sequences.users))
    return [history for history in every if len(history)]
