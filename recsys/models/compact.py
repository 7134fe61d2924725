"""The compact shape: one backbone position per history item, the draft head is the only writer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from recsys.models.backbone import Backbone
from recsys.models.head import DraftHead
from recsys.models.item_input import ItemFeatures, ItemInput

if TYPE_CHECKING:
    from recsys.models.config import RecommenderConfig


def own_backbone(config: RecommenderConfig) -> Backbone:
    """The decoder of `recsys.models.backbone` in the sizes of a configuration."""
    return Backbone(
        d_model=config.d_model,
        layers=config.layers,
        heads=config.heads,
        ffn_multiple=config.ffn_multiple,
        dropout=config.dropout,
    )


class Trunk(nn.Module):
    """Item input and backbone; position 0 is a learned start, so that an empty history has an answer."""

    def __init__(self, config: RecommenderConfig, features: ItemFeatures) -> None:
        super().__init__()
        self.input = ItemInput(config, features)
        self.start = nn.Parameter(torch.randn(config.d_model) * 0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.backbone = own_backbone(config)

    def forward(self, items: Tensor) -> Tensor:
        """Hidden states of a batch of histories.

        Args:
            items: (B, n) int64, oldest first, padded on the right with -1.

        Returns:
            (B, n + 1, H): position j has read the first j items.
        """
        batch, count = items.shape
        embedded = self.input(items.clamp(min=0))  # (B, n, H)
        x = torch.cat([self.start.expand(batch, 1, -1).to(embedded.dtype), embedded], dim=1)
        positions = torch.arange(count + 1, device=items.device).expand(batch, -1)
        # Padding stands on the right: causal attention keeps it out of every real position.
        hidden: Tensor = self.backbone(self.dropout(x), positions=positions)[0]
        return hidden

    def last(self, items: Tensor, lengths: Tensor) -> Tensor:
        """The hidden state behind the whole history: items (B, n), lengths (B,) -> (B, H)."""
        hidden = self.forward(items)
        return hidden[torch.arange(len(items), device=items.device), lengths]


class CompactRecommender(nn.Module):
    """Trunk, learned maps to the head's L + 1 hidden states, and the head."""

    def __init__(self, config: RecommenderConfig, features: ItemFeatures) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config, features)
        width = config.d_model
        places = [nn.Linear(width, width, bias=False) for _ in range(config.levels)]
        for layer in places:
            nn.init.eye_(layer.weight)
        self.place = nn.ModuleList(places)
        self.head = DraftHead(config)

    def expand(self, hidden: Tensor) -> Tensor:
        """h_0 (N, H) -> h_0..h_L (N, L+1, H); without placeholders every h_l is h_0."""
        if not self.config.placeholders:
            return hidden[:, None].expand(-1, self.config.levels + 1, -1)
        return torch.stack([hidden, *(layer(hidden) for layer in self.place)], dim=1)

    def encode(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Histories (B, n) padded with -1 and their lengths (B,) -> (B, L+1, H)."""
        return self.expand(self.trunk.last(items, lengths))


class FlatRecommender(nn.Module):
    """The same trunk with a dot product over all items: the honest rival."""

    def __init__(self, config: RecommenderConfig, features: ItemFeatures) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config, features)
        self.output = nn.Linear(config.d_model, config.d_model, bias=False)
        nn.init.eye_(self.output.weight)
        self.item_output = nn.Embedding(config.num_items, config.d_model)
        nn.init.normal_(self.item_output.weight, std=0.02)

    def item_vectors(self) -> Tensor:
        """(I, H): a free vector plus what the input knows of the item's content."""
        items = torch.arange(self.config.num_items, device=self.item_output.weight.device)
        vectors: Tensor = self.item_output(items) + self.trunk.input(items)
        return vectors

    def encode(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Histories (B, n) padded with -1 and their lengths (B,) -> user vectors (B, H)."""
        vectors: Tensor = self.output(self.trunk.last(items, lengths))
        return vectors
