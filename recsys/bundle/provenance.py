"""Which code made something."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def code_version() -> str:
    """The git commit of the code that runs ('-dirty' where files were changed), else the package's version."""
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)  # noqa: S603
        except (OSError, subprocess.SubprocessError):
            pass
        else:
            return done.stdout.strip()
    try:
        return version("windfire")
    except PackageNotFoundError:
        return "unknown"
