"""The HTTP service and its engine."""
