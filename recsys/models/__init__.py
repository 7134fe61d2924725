"""Backbones, draft heads and the item input."""

from __future__ import annotations

from recsys.models.compact import CompactRecommender, FlatRecommender
from recsys.models.config import RecommenderConfig
from recsys.models.item_input import ItemFeatures
from recsys.models.token import TokenRecommender

Recommender = CompactRecommender | FlatRecommender | TokenRecommender

__all__ = [
    "CompactRecommender",
    "FlatRecommender",
    "ItemFeatures",
    "Recommender",
    "RecommenderConfig",
    "TokenRecommender",
    "build_model",
]


def build_model(config: RecommenderConfig, features: ItemFeatures) -> Recommender:
    """An untrained model of the configuration's shape; initial weights come from torch's current generator."""
    if config.shape == "flat":
        return FlatRecommender(config, features)
    if config.shape == "token":
        return TokenRecommender(config, features)
    return CompactRecommender(config, features)
