"""Spark jobs from tables to semantic IDs and features."""
