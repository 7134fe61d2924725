"""A second model beside the one that decodes: it scores the candidates of a request, and nothing else.

One forward of its trunk per history, then a dot product with each candidate: no work in proportion to the catalogue.
The normaliser of its softmax is the same for all candidates of a history and is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from recsys.decoding.decoder import check_finite, extend
from recsys.decoding.histories import pad_histories

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from recsys.decoding.flat import TwoTower


class SecondModel:
    """Scores candidates by a model that gives a vector to a history and to every item.

    The item vectors are copied on construction: make a new one after the model has been trained further.

    Args:
        model: in evaluation mode.

    Attributes:
        count: items that have a vector.
    """

    def __init__(self, model: TwoTower) -> None:
        self._model = model
        with torch.inference_mode():
            self._items = model.item_vectors().contiguous().clone()  # (I, H)
        self.count = len(self._items)
        self._known = self.count  # items that a history may hold

    def add_items(self, codes: npt.NDArray[np.integer], text: npt.NDArray[np.float32]) -> bool:
        """See `recsys.decoding.decoder.ExtendsItems`; added items can stand in a history."""
        added = extend(self._model, codes, text)
        self._known += len(codes) if added else 0
        return added

    @torch.inference_mode()
    def scores(
        self, histories: Sequence[npt.NDArray[np.integer]], candidates: Sequence[npt.NDArray[np.integer]]
    ) -> list[npt.NDArray[np.float64]]:
        """The score of every candidate.

        Args:
            histories: B histories, oldest first.
            candidates: B arrays of items.

        Returns:
            B arrays (m,) float64. An item that was added after the model was frozen has no vector: it counts as the
            median of the other candidates, so that it is moved neither up nor down; 0 where there are none.

        Raises:
            InputError: a history holds what is no item.
            DataError: the model's states are not finite.
        """
        limit = self._model.config.max_history
        items, lengths = pad_histories(histories, items=self._known, limit=limit, device=self._items.device)
        users = self._model.encode(items, lengths)  # (B, H)
        check_finite(users)
        return [self._of(user, np.asarray(own)) for user, own in zip(users, candidates, strict=True)]

    def positions(self, histories: Sequence[npt.NDArray[np.integer]]) -> int:
        """Sequence positions that a call of `scores` puts through the trunk: the items it reads, and a start each."""
        limit = self._model.config.max_history
        return sum(min(len(history), limit) + 1 for history in histories)

    def _of(self, user: torch.Tensor, items: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        frozen = items < self.count
        rows = torch.from_numpy(items[frozen].astype(np.int64)).to(self._items.device)
        values = (self._items[rows] @ user).double().cpu().numpy()  # (m',)
        scores = np.full(len(items), np.median(values) if len(values) else 0.0)
        scores[frozen] = values
        return scores
