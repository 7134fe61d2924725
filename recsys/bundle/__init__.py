"""Immutable, versioned bundles and their registry.

What stands here is imported when it is first used: a process that only looks into a registry loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
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

_PLACES: Final = {
    "ALL_SCENES": "bundle",
    "Bundle": "bundle",
    "BundleManifest": "manifest",
    "ItemToItem": "bundle",
    "Registry": "registry",
    "load_decoder": "loading",
    "load_indexes": "loading",
    "publish_run": "writer",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
