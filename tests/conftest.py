"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of public data sets; skips where it is absent."""
    folder = Path(os.environ.get("WINDFIRE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"public data sets are absent: set WINDFIRE_DATA (looked in {folder})")
    return folder
