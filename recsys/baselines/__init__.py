"""The baselines every quality table carries."""
