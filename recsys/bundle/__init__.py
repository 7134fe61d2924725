"""Immutable, versioned bundles and their registry."""
