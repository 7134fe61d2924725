"""Nearest items: faiss indexes over item vectors that never answer what may not be shown."""

from recsys.retrieval.settings import IndexSettings
from recsys.retrieval.vector_index import Found, VectorIndex

__all__ = ["Found", "IndexSettings", "VectorIndex"]
