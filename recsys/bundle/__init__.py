"""Immutable, versioned bundles and their registry."""

from recsys.bundle.bundle import ALL_SCENES, Bundle, ItemToItem
from recsys.bundle.loading import load_decoder, load_indexes
from recsys.bundle.manifest import BundleManifest
from recsys.bundle.registry import Registry
from recsys.bundle.writer import publish_run

__all__ = [
    "ALL_SCENES",
    "Bundle",
    "BundleManifest",
    "ItemToItem",
    "Registry",
    "load_decoder",
    "load_indexes",
    "publish_run",
]
