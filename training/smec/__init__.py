"""Shorter vectors: SMEC (arXiv:2510.12474) and what it is measured against."""
