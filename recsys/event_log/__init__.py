"""Durable append-only logs of events and exposures."""
