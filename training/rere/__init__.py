"""Reinforcement learning of a finished recommender by constrained rollouts (ReRe, arXiv:2510.12211)."""
