from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> AbstractContextManager[None]:
    """While entered, a write takes five bytes and then fails, as on a full disk."""
    write = os.write

    def fail(file: int, data: bytes) -> int:
        write(file, data[:5])
        raise OSError(28, "No space left on device")

    @contextmanager
    def full() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", fail)
            yield

    return full()
