"""Semantic IDs: tokenizers behind one interface, collision policies, embedding sources, retraining, quality."""
