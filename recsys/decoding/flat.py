"""The `flat` decoder: one forward of the trunk, then a dot product with every item."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from recsys.decoding.decoder import DecodeResult, Ranked, Spent, check_finite, check_request, extend
from recsys.decoding.histories import pad_histories
from recsys.decoding.ragged import best
from recsys.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from recsys.decoding.eligibility import Eligibility
    from recsys.decoding.log_prior import LogPrior
    from recsys.models.config import RecommenderConfig


class TwoTower(Protocol):
    """A model that gives a vector to a history and to every item."""

    @property
    def config(self) -> RecommenderConfig:
        """Its sizes and switches."""

    def encode(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Histories (B, n) padded with -1, lengths (B,) -> (B, H)."""

    def item_vectors(self) -> Tensor:
        """(I, H)."""


class FlatDecoder:
    """Log-softmax over all items of the dot products of user and items; ties go to the smaller item index.

    Items that were added after the model was frozen have no vector and are never answered; those removed are hidden.

    The item vectors are copied on construction: make a new decoder after the model has been trained further.

    Args:
        model: in evaluation mode.
    """

    name = "flat"

    def __init__(self, model: TwoTower) -> None:
        self._model = model
        with torch.inference_mode():
            self._items = model.item_vectors().contiguous().clone()  # (I, H)
        self._known = len(self._items)  # items that a history may hold

    def add_items(self, codes: npt.NDArray[np.integer], text: npt.NDArray[np.float32]) -> bool:
        """See `recsys.decoding.decoder.ExtendsItems`."""
        added = extend(self._model, codes, text)
        self._known += len(codes) if added else 0
        return added

    @torch.inference_mode()
    def decode(
        self,
        histories: Sequence[npt.NDArray[np.integer]],
        *,
        k: int,
        beam: int,
        eligibility: Eligibility,
        log_prior: LogPrior | None = None,
    ) -> DecodeResult:
        """See `Decoder.decode`; there is no beam."""
        check_request(k, beam)
        count = len(self._items)
        excluded = eligibility.excluded
        if excluded is not None and len(excluded) != len(histories):
            raise InputError("excluded must name one list per request", field="excluded", value=len(excluded))
        limit = self._model.config.max_history
        items, lengths = pad_histories(histories, items=self._known, limit=limit, device=self._items.device)
        users = self._model.encode(items, lengths)  # (B, H)
        check_finite(users)
        logits = users @ self._items.T  # (B, I)
        scores = logits.sub_(logits.logsumexp(dim=1, keepdim=True)).cpu().numpy()
        if log_prior is not None:
            scores += log_prior.values.astype(scores.dtype)
        shared = eligibility.frozen(count)
        newer = 0 if eligibility.live is None or eligibility.live.added is None else eligibility.live.added.items.count
        ranked = []
        for row, values in enumerate(scores):
            if shared is not None:
                values[~_checked(shared, count)] = -np.inf
            if excluded is not None and len(excluded[row]):
                hidden = _within(excluded[row], count + newer)
                values[hidden[hidden < count]] = -np.inf
            chosen = best(values, k)
            order = chosen[np.argsort(-values[chosen], kind="stable")]
            ranked.append(Ranked(order.astype(np.int32), values[order]))
        return DecodeResult(ranked, Spent(1, int(lengths.sum()) + len(histories)))


def _checked(shared: npt.NDArray[np.bool_], count: int) -> npt.NDArray[np.bool_]:
    if shared.shape != (count,) or shared.dtype != np.bool_:
        raise InputError(
            f"shared eligibility must be ({count},) bool", field="shared", value=(shared.shape, str(shared.dtype))
        )
    return shared


def _within(items: npt.NDArray[np.integer], count: int) -> npt.NDArray[np.integer]:
    items = np.asarray(items)
    if items.min() < 0 or items.max() >= count:
        raise InputError(
            f"excluded items must lie in 0..{count - 1}", field="excluded", value=(int(items.min()), int(items.max()))
        )
    return items
