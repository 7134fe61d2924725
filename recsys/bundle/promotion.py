"""CURRENT moves through the gate, back without it, and every move is written down."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from recsys.bundle.gate import Verdict, judge, refused
from recsys.bundle.manifest import BundleManifest
from recsys.bundle.pointers import CANARY
from recsys.errors import DataError, InputError, WindfireError

if TYPE_CHECKING:
    from recsys.bundle.gate import Gate
    from recsys.bundle.registry import Registry

MOVES: Final = "moves.jsonl"
"""File of a registry with one line per move of CURRENT."""

_LONGEST_REASON: Final = 1_000


def promote(registry: Registry, version: str, gate: Gate, *, reason: str | None = None) -> Verdict:
    """Serve a version from now on, if the gate lets it pass. A canary ends: what it was compared with is gone.

    Args:
        registry: where it is.
        version: which.
        gate: compares it with the one that is served.
        reason: why it is served although the gate refuses; written down with the figures.

    Returns:
        What the gate said.

    Raises:
        GateError: it refuses; names the figures. CURRENT stays.
        InputError: the version is not in the registry, or the reason is empty.
        CorruptionError, DataError: its manifest cannot be read.
    """
    if reason is not None:
        _check_reason(reason)
    with registry.exclusive():
        registry.require(version)
        before = _named(registry)
        verdict = judge(BundleManifest.load(registry.path(version)), _manifest(registry, before), gate)
        if not verdict.passed and reason is None:
            raise refused(version, before, verdict)
        registry.point_to(version)
        said = {"verdict": str(verdict), "passed": verdict.passed, "reason": reason}
        _moved(registry, "promote", before, version, said)
    return verdict


def take_over(registry: Registry, version: str, served: str) -> None:
    """Serve a version that is the served model once more, with the catalogue of now: no gate, and a canary goes on.

    Args:
        registry: where it is.
        version: which.
        served: the version whose model it is; it must still be served.

    Raises:
        DataError: another one is served by now; CURRENT stays.
        InputError: the version is not in the registry.
    """
    with registry.exclusive():
        current = registry.current()
        if current != served:
            raise DataError(
                f"another version is served by now; {version} is published and not served",
                field="CURRENT",
                value=current,
                remedy="compact again",
            )
        registry.point_to(version)
        said = {"verdict": "the same model, with the catalogue of now", "passed": True, "reason": None}
        _write(registry, "promote", served, version, said)


def roll_back(registry: Registry, version: str | None = None) -> str:
    """Serve an earlier version, whatever it measures. A canary ends.

    Args:
        registry: where it is.
        version: which; None = the one that was served before, else the newest that is older than the current one.

    Returns:
        The version that is served now.

    Raises:
        InputError: it is not in the registry, or there is none before the current one.
    """
    with registry.exclusive():
        before = registry.current() if version is None else _named(registry)
        if version is None:
            version = _served_before(registry, before) or registry.earlier()
        registry.point_to(version)
        _moved(registry, "roll_back", before, version, {})
    return version


def moves(registry: Registry) -> list[dict[str, Any]]:
    """What happened to CURRENT, oldest first: time, kind, from, to, verdict, reason; half a line is left out."""
    path = registry.root / MOVES
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:  # a writer was killed
            continue
    return found


def served_before(registry: Registry, version: str | None) -> list[str]:
    """What was served before and is in the registry, the last first, each once, without one version.

    A version that was published and never served is not among them: the gate may have refused it.

    Args:
        registry: where it is.
        version: what is left out.
    """
    known = set(registry.versions()) - {version}
    named = [str(move["to"]) for move in reversed(moves(registry))]
    return [name for name in dict.fromkeys(named) if name in known]


def _served_before(registry: Registry, current: str | None) -> str | None:
    """What was served before the newest promotion to the current version; None where that is not written down."""
    for move in reversed(moves(registry)):
        if move["kind"] == "promote" and move["to"] == current and move["from"] not in (None, current):
            known = (registry.path(move["from"]) / "manifest.json").is_file()
            return str(move["from"]) if known else None
    return None


def _named(registry: Registry) -> str | None:
    """What CURRENT names; None also where somebody spoiled it, which the move mends."""
    with suppress(InputError):
        return registry.current()
    return None


def _manifest(registry: Registry, version: str | None) -> BundleManifest | None:
    """Of the served bundle; None where there is none, or where it is gone or damaged: nobody wants to keep that."""
    with suppress(WindfireError):
        return None if version is None else BundleManifest.load(registry.path(version))
    return None


def _check_reason(reason: str) -> None:
    if not reason.strip() or len(reason) > _LONGEST_REASON:
        raise InputError(
            f"a reason has 1 to {_LONGEST_REASON} characters",
            field="reason",
            value=reason,
            remedy="say why the bundle is served although it measures worse",
        )


def _moved(registry: Registry, kind: str, before: str | None, version: str, said: dict[str, Any]) -> None:
    _write(registry, kind, before, version, said)
    (registry.root / CANARY).unlink(missing_ok=True)


def _write(registry: Registry, kind: str, before: str | None, version: str, said: dict[str, Any]) -> None:
    now = datetime.now(UTC).isoformat()
    line = json.dumps({"time": now, "kind": kind, "from": before, "to": version, **said}, ensure_ascii=False)
    with (registry.root / MOVES).open("a+b") as file:
        file.seek(0)
        torn = not file.read().endswith(b"\n") and file.tell() > 0  # a writer was killed
        file.write(b"\n" * torn + f"{line}\n".encode())
        file.flush()
        os.fsync(file.fileno())
