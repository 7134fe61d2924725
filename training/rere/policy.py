"""The policy: a finished model, whose probability of an item is the product over its semantic ID's codes.

Each code's probability is the softmax over the children that its prefix has in the model's own trie (the normaliser),
not over the codebook: no probability falls on semantic IDs that do not exist. The backbone reads without dropout, in
rollouts and in updates, so that a first update's ratio is 1.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from recsys.decoding.buckets import Buckets
from recsys.decoding.histories import pad_histories
from recsys.decoding.trie import SidTrie
from recsys.errors import ConfigError
from recsys.models.compact import CompactRecommender
from recsys.models.normaliser import Normaliser
from recsys.models.token import TokenRecommender
from training.recommender.objectives import path_levels, path_log_probs

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from recsys.models import AnyRecommender

PolicyModel = CompactRecommender | TokenRecommender


class Policy:
    """A model with its trie.

    Args:
        model: of the compact shape, or of the token shape, whose draft head then is the policy; used in evaluation
            mode.
        codes: (I, L) semantic IDs.
        prior: (I,) order of preference among items that share a semantic ID.

    Raises:
        ConfigError: the model has no draft head, or was trained over whole codebooks.
    """

    def __init__(
        self, model: AnyRecommender, codes: npt.NDArray[np.integer], prior: npt.NDArray[np.number] | None = None
    ) -> None:
        if not isinstance(model, CompactRecommender | TokenRecommender):
            raise ConfigError(
                "rollouts need a draft head that is trained here",
                field="shape",
                value=model.config.shape,
                remedy="give a run of the compact or the token shape",
            )
        if model.config.whole_codebook:
            raise ConfigError(
                "the policy's softmax is over the children of a prefix",
                field="whole_codebook",
                value=True,
                remedy="give a run with whole_codebook: false",
            )
        self.model: PolicyModel = model.eval()
        trie = SidTrie.build(codes, model.config.codebook_sizes)
        self.trie = trie if prior is None else trie.preferring(prior)
        self.device = next(model.parameters()).device
        self.normaliser = Normaliser(self.trie).to(self.device)
        self.buckets = Buckets(self.trie)

    def reference(self) -> Policy:
        """A copy whose weights stay as they are now; the trie is shared."""
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model).requires_grad_(requires_grad=False)
        return other

    def states(self, histories: Sequence[npt.NDArray[np.integer]]) -> Tensor:
        """Hidden states behind n histories, (n, L + 1, H), differentiable."""
        config = self.model.config
        items, lengths = pad_histories(histories, items=config.num_items, limit=config.max_history, device=self.device)
        return self.model.encode(items, lengths)

    def item_log_probs(self, states: Tensor, items: Tensor) -> Tensor:
        """See `item_log_probs`."""
        return item_log_probs(self.model, self.normaliser, states, items)

    def child_log_probs(self, states: Tensor, items: Tensor) -> list[Tensor]:
        """Log-probabilities of all children at each prefix of items' semantic IDs.

        Args:
            states: (n, L + 1, H).
            items: (n, G).

        Returns:
            Per level (n, G, W), minus infinity behind the last child; (n, 1, W) at the first level.
        """
        found = []
        for level, (logits, own) in enumerate(path_levels(self.model, self.normaliser, states, items)):
            above = items.reshape(-1) if level else items[:, 0]
            parent = self.normaliser.item_node[above, level - 1] if level else torch.zeros_like(above)
            log_probs, _ = self.normaliser.child_log_probs(level, logits, parent, own)
            found.append(log_probs.view(len(items), -1, log_probs.shape[1]))
        return found


def item_log_probs(model: PolicyModel, normaliser: Normaliser, states: Tensor, items: Tensor) -> Tensor:
    """Log-probabilities of items, level by level; their sum over levels is the semantic ID's.

    Args:
        model: whose head writes.
        normaliser: of the model's trie.
        states: (n, L + 1, H) behind the histories.
        items: (n, G).

    Returns:
        (n, G, L) float32, differentiable.
    """
    return torch.stack(path_log_probs(model, normaliser, states, items), dim=2)
