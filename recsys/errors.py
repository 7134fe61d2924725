"""One hierarchy of errors: each names the field, the value and the remedy."""

from __future__ import annotations

from typing import Any

_SHOWN = 120


class WindfireError(Exception):
    """Base of every error that Windfire raises on purpose.

    Args:
        message: what happened, naming the field and the value.
        remedy: what the reader can do about it.
        field: the name of the offending field, where there is one.
        value: the offending value; cut to 120 characters when shown.

    Attributes:
        code: a stable word for programs; documented in docs/operating.md.
        retryable: whether the same call may succeed later.
    """

    code = "error"
    retryable = False

    def __init__(self, message: str, *, remedy: str = "", field: str | None = None, value: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.field = field
        self.value = value

    def __str__(self) -> str:
        parts = [self.message]
        if self.field is not None:
            shown = repr(self.value)
            parts.append(f"[{self.field} = {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '…'}]")
        if self.remedy:
            parts.append(f"Remedy: {self.remedy}")
        return " ".join(parts)


class InputError(WindfireError):
    """A file, a row or a request does not fit its documented form."""

    code = "bad_input"


class ConfigError(WindfireError):
    """A setting is missing, out of range or contradicts another."""

    code = "bad_config"


class DataError(WindfireError):
    """Stored tables or artefacts are missing, empty or contradict each other."""

    code = "bad_data"


class CorruptionError(WindfireError):
    """Stored bytes differ from their checksum."""

    code = "corrupt"


class VersionMismatchError(WindfireError):
    """Two artefacts that must belong together carry different versions."""

    code = "version_mismatch"


class UnavailableError(WindfireError):
    """Something that serving needs is not there at the moment."""

    code = "unavailable"
    retryable = True


class OverloadedError(UnavailableError):
    """More is asked than can be done in time; whatever refuses is well."""

    code = "overloaded"


class GateError(WindfireError):
    """A bundle measures worse than the one that is served, by more than is allowed."""

    code = "gate_refused"
