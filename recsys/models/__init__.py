"""Backbones, draft heads and the item input."""
