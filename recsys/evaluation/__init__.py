"""Metrics over the full catalogue, statistics of what is recommended, intervals."""
