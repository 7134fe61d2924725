"""Immutable, versioned bundles and their registry."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from recsys.bundle.bundle import ALL_SCENES, Bundle, ItemToItem
from recsys.bundle.manifest import BundleManifest
from recsys.bundle.registry import Registry

if TYPE_CHECKING:
    from recsys.bundle.loading import load_decoder, load_indexes
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

# With torch, which who only reads tables out of a bundle does not load.
_LATER: Final = {
    "load_decoder": "recsys.bundle.loading",
    "load_indexes": "recsys.bundle.loading",
    "publish_run": "recsys.bundle.writer",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
