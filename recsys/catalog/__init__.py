"""The catalog's items and their state."""
