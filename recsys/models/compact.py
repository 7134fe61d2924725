"""The compact shape: one backbone position per history item, the draft head is the only writer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from recsys.errors import ConfigError
from recsys.models.backbone import Around, Backbone
from recsys.models.head import DraftHead
from recsys.models.item_input import ItemFeatures, ItemInput

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt

    from recsys.models.backbone import AnyBackbone, Engine, MakeEngine
    from recsys.models.config import RecommenderConfig

    MakeBackbone = Callable[[RecommenderConfig], AnyBackbone]


def own_backbone(config: RecommenderConfig) -> Backbone:
    """The decoder of `recsys.models.backbone` in the sizes of a configuration.

    Raises:
        ConfigError: the configuration names another backbone.
    """
    if config.backbone != "own":
        raise ConfigError(
            "not the backbone of recsys.models",
            field="backbone",
            value=config.backbone,
            remedy="give `build_model` a maker that knows it: `recsys.backends.choose_backbone`",
        )
    return Backbone(
        d_model=config.d_model,
        layers=config.layers,
        heads=config.heads,
        ffn_multiple=config.ffn_multiple,
        dropout=config.dropout,
    )


class Trunk(nn.Module):
    """Item input and backbone; position 0 is a learned start, so that an empty history has an answer."""

    def __init__(self, config: RecommenderConfig, features: ItemFeatures, make_backbone: MakeBackbone) -> None:
        super().__init__()
        self.input = ItemInput(config, features)
        self.start = nn.Parameter(torch.randn(config.d_model) * 0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.backbone = make_backbone(config)
        self._reader: Engine | None = None

    def forward(self, items: Tensor) -> Tensor:
        """Hidden states of a batch of histories.

        Args:
            items: (B, n) int64, oldest first, padded on the right with -1.

        Returns:
            (B, n + 1, H): position j has read the first j items.
        """
        x = self._embedded(items)
        hidden, _ = self.backbone(x, positions=torch.arange(x.shape[1], device=x.device).expand(len(x), -1))
        return hidden

    def _embedded(self, items: Tensor) -> Tensor:
        """(B, n + 1, H); padding stands on the right: causal attention keeps it out."""
        embedded = self.input(items.clamp(min=0))  # (B, n, H)
        x = torch.cat([self.start.expand(len(items), 1, -1).to(embedded.dtype), embedded], dim=1)
        return self.dropout(x) if self.training else x

    def freeze(self, make_engine: MakeEngine | None, maps: Tensor) -> None:
        """See `CompactRecommender.freeze`; maps (H, K) are for `mapped`."""
        table = self.input.freeze(with_codes=True, start=self.start)
        around = None if table is None else Around(table, maps)
        engine = self.backbone.freeze(make_engine, around)
        self._reader = None if around is None else engine

    def train(self, mode: bool = True) -> Self:
        """As torch's; weights that train again no longer fit frozen ones."""
        if mode:
            self._reader = None
        return super().train(mode)

    def mapped(self, items: Tensor, lengths: Tensor) -> Tensor | None:
        """(B, K): `last` times the maps of `freeze`; None where no engine computes both at once, or an item is new."""
        if self._reader is None or self.input.holds_added(items):
            return None
        return self._reader.read(items, lengths)

    def last(self, items: Tensor, lengths: Tensor) -> Tensor:
        """The hidden state behind the whole history: items (B, n), lengths (B,) -> (B, H)."""
        return self.backbone.tail(self._embedded(items), ends=lengths, count=1)[:, 0]


class CompactRecommender(nn.Module):
    """Trunk, learned maps to the head's L + 1 hidden states, and the head."""

    def __init__(
        self, config: RecommenderConfig, features: ItemFeatures, make_backbone: MakeBackbone = own_backbone
    ) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config, features, make_backbone)
        width = config.d_model
        places = [nn.Linear(width, width, bias=False) for _ in range(config.levels)]
        for layer in places:
            nn.init.eye_(layer.weight)
        self.place = nn.ModuleList(places)
        self.head = DraftHead(config, item_rows=config.item_rows)
        self._places: Tensor | None = None

    def expand(self, hidden: Tensor) -> Tensor:
        """h_0 (N, H) -> h_0..h_L (N, L+1, H); without placeholders every h_l is h_0."""
        if not self.config.placeholders:
            return hidden[:, None].expand(-1, self.config.levels + 1, -1)
        if self._places is not None:
            placed = torch.mm(hidden, self._places)
            return torch.cat([hidden, placed], dim=1).view(len(hidden), -1, hidden.shape[1])
        return torch.stack([hidden, *(layer(hidden) for layer in self.place)], dim=1)

    def freeze(self, make_engine: MakeEngine | None = None) -> None:
        """For inference with weights that will not change: item inputs are tabled, the backbone laid out for speed.

        Args:
            make_engine: what computes the backbone's forward; `recsys.backends.choose_engine` knows all.

        Raises:
            ConfigError: the engine cannot run this backbone.
        """
        weights = [layer.get_parameter("weight").detach().T for layer in self.place]
        self._places = torch.cat(weights, dim=1)  # (H, L * H)
        same = torch.eye(self.config.d_model, dtype=self._places.dtype, device=self._places.device)
        behind = weights if self.config.placeholders else [same] * self.config.levels
        self.trunk.freeze(make_engine, torch.cat([same, *behind], dim=1))  # (H, (L + 1) * H)

    def train(self, mode: bool = True) -> Self:
        """As torch's; weights that train again no longer fit frozen ones."""
        if mode:
            self._places = None
        return super().train(mode)

    def add_items(self, codes: npt.NDArray[np.integer], text: npt.NDArray[np.float32]) -> None:
        """See `recsys.models.item_input.ItemInput.add_items`."""
        self.trunk.input.add_items(codes, text)

    def positions(self, counts: Sequence[int], *, placeholders: bool) -> int:  # noqa: ARG002 - as in the token shape
        """Sequence positions of a batch of histories of `counts` items: one each, and the start."""
        return sum(counts) + len(counts)

    def encode(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Histories (B, n) padded with -1 and their lengths (B,) -> (B, L+1, H)."""
        mapped = self.trunk.mapped(items, lengths)
        if mapped is not None:
            return mapped.view(len(items), self.config.levels + 1, -1)
        return self.expand(self.trunk.last(items, lengths))


class FlatRecommender(nn.Module):
    """The same trunk with a dot product over all items: the honest rival."""

    def __init__(
        self, config: RecommenderConfig, features: ItemFeatures, make_backbone: MakeBackbone = own_backbone
    ) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config, features, make_backbone)
        self.output = nn.Linear(config.d_model, config.d_model, bias=False)
        nn.init.eye_(self.output.weight)
        self.item_output = nn.Embedding(config.num_items, config.d_model)
        nn.init.normal_(self.item_output.weight, std=0.02)

    def freeze(self, make_engine: MakeEngine | None = None) -> None:
        """For inference with weights that will not change: item inputs are tabled, the backbone laid out for speed.

        Args:
            make_engine: what computes the backbone's forward; `recsys.backends.choose_engine` knows all.

        Raises:
            ConfigError: the engine cannot run this backbone.
        """
        self.trunk.freeze(make_engine, self.output.weight.detach().T)

    def add_items(self, codes: npt.NDArray[np.integer], text: npt.NDArray[np.float32]) -> None:
        """See `recsys.models.item_input.ItemInput.add_items`."""
        self.trunk.input.add_items(codes, text)

    def item_vectors(self) -> Tensor:
        """(I, H): a free vector plus what the input knows of the item's content."""
        items = torch.arange(self.config.num_items, device=self.item_output.weight.device)
        vectors: Tensor = self.item_output(items) + self.trunk.input(items)
        return vectors

    def encode(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Histories (B, n) padded with -1 and their lengths (B,) -> user vectors (B, H)."""
        mapped = self.trunk.mapped(items, lengths)
        if mapped is not None:
            return mapped
        vectors: Tensor = self.output(self.trunk.last(items, lengths))
        return vectors
