"""Measurements behind windfire bench, and the tables made from them."""
