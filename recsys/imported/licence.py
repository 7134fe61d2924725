"""Under which licence a model's folder says that it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import yaml

if TYPE_CHECKING:
    from pathlib import Path

UNKNOWN: Final = "unknown"
_FILES: Final = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "COPYING")
_KNOWN: Final = {
    "apache license": "apache-2.0",
    "mit license": "mit",
    "permission is hereby granted, free of charge": "mit",
}
_READ: Final = 2_000  # characters: a licence names itself at its beginning
_LINE: Final = 80


def read_licence(directory: Path) -> str:
    """The licence of a model's folder.

    The front matter of README.md says it (`license`, and `license_name` where that is `other`); else a licence file
    does, by the licence that it is known as or by its first line.

    Returns:
        Its name; `unknown` where the folder does not say.
    """
    declared = _front_matter(directory / "README.md")
    if declared:
        return declared
    for name in _FILES:
        path = directory / name
        if path.is_file():
            return _heading(path.read_text(encoding="utf-8", errors="replace")[:_READ])
    return UNKNOWN


def _front_matter(path: Path) -> str:
    if not path.is_file():
        return ""
    parts = path.read_text(encoding="utf-8", errors="replace").split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return ""
    try:
        values: Any = yaml.safe_load(parts[1])
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date that is none
        return ""
    if not isinstance(values, dict):
        return ""
    names = [values.get("license"), values.get("license_name")]
    found = [str(name) for name in names if name and name != "other"]
    return found[-1] if found else ""


def _heading(text: str) -> str:
    plain = " ".join(text.lower().split())
    for words, name in _KNOWN.items():
        if words in plain:
            return name
    return next((line.strip()[:_LINE] for line in text.splitlines() if line.strip()), UNKNOWN)
