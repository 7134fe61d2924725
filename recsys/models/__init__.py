"""Backbones, draft heads and the item input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recsys.models.compact import CompactRecommender, FlatRecommender, own_backbone
from recsys.models.config import RecommenderConfig
from recsys.models.item_input import ItemFeatures
from recsys.models.prompted import PromptedRecommender
from recsys.models.token import TokenRecommender

if TYPE_CHECKING:
    from recsys.models.compact import MakeBackbone

Recommender = CompactRecommender | FlatRecommender | TokenRecommender
AnyRecommender = Recommender | PromptedRecommender

__all__ = [
    "AnyRecommender",
    "CompactRecommender",
    "FlatRecommender",
    "ItemFeatures",
    "PromptedRecommender",
    "Recommender",
    "RecommenderConfig",
    "TokenRecommender",
    "build_model",
]


def build_model(
    config: RecommenderConfig, features: ItemFeatures, make_backbone: MakeBackbone = own_backbone
) -> Recommender:
    """An untrained model of the configuration's shape; initial weights come from torch's current generator.

    Args:
        config: sizes and switches.
        features: of the items.
        make_backbone: from the configuration to a backbone; `recsys.backends.choose_backbone` knows all of them.

    Raises:
        ConfigError: the maker does not know the configured backbone, or the backbone refuses its settings.
    """
    if config.shape == "flat":
        return FlatRecommender(config, features, make_backbone)
    if config.shape == "token":
        return TokenRecommender(config, features, make_backbone)
    return CompactRecommender(config, features, make_backbone)
