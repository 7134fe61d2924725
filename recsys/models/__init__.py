"""Backbones, draft heads and the item input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recsys.models.compact import CompactRecommender, FlatRecommender
from recsys.models.config import RecommenderConfig
from recsys.models.item_input import ItemFeatures

if TYPE_CHECKING:
    Recommender = CompactRecommender | FlatRecommender

__all__ = ["CompactRecommender", "FlatRecommender", "ItemFeatures", "RecommenderConfig", "build_model"]


def build_model(config: RecommenderConfig, features: ItemFeatures) -> Recommender:
    """An untrained model of the configuration's shape; initial weights come from torch's current generator."""
    if config.shape == "flat":
        return FlatRecommender(config, features)
    return CompactRecommender(config, features)
