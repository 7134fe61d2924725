"""Backbones that need more than torch, and choosing among all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recsys.errors import ConfigError
from recsys.models.compact import own_backbone

if TYPE_CHECKING:
    from recsys.models import RecommenderConfig
    from recsys.models.backbone import AnyBackbone

__all__ = ["choose_backbone"]


def choose_backbone(config: RecommenderConfig) -> AnyBackbone:
    """The untrained backbone that a configuration names, for `recsys.models.build_model`.

    Raises:
        ConfigError: its library cannot be imported, or it refuses its settings.
    """
    if config.backbone == "own":
        return own_backbone(config)
    try:
        from recsys.backends.huggingface import HuggingFaceBackbone
    except ImportError as error:
        raise ConfigError(
            f"transformers cannot be imported: {error}",
            field="backbone",
            value=config.backbone,
            remedy="install transformers, or choose the backbone `own`",
        ) from error
    return HuggingFaceBackbone(config)
