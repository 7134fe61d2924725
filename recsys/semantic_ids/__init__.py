"""Semantic IDs: residual k-means, last-level reassignment, codebook sizes."""
