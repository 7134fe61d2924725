"""Errors of the load tests; the command line shows them as Windfire's own."""

from __future__ import annotations

from typing import Any


class LoadTestError(Exception):
    """Base of what a load test raises on purpose.

    Args:
        message: what happened.
        field: the offending setting.
        value: its value.
        remedy: what the reader can do.
    """

    def __init__(self, message: str, *, field: str, value: Any, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.value = value
        self.remedy = remedy


class SettingsError(LoadTestError):
    """A setting is missing, out of range or contradicts another."""


class UnreachableError(LoadTestError):
    """Nobody answers where the load should go."""
