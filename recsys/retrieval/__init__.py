"""Nearest items: faiss indexes over item vectors that never answer what may not be shown."""
