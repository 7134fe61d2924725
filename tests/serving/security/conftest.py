from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from recsys.storage import write_bytes_atomically
from serving.app import create_app
from serving.security.keys import Scope, StoredKey, encode_keys, new_key
from serving.settings import Settings

DAY = 86_400_000_000


class KeyFile:
    """A key file that a test fills; the keys themselves by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stored: list[StoredKey] = []
        self.secrets: dict[str, str] = {}

    def add(self, name: str, *scopes: Scope, **limits: Any) -> str:
        stored, key = new_key(name, scopes, **limits)
        self.stored.append(stored)
        self.secrets[name] = key
        self.write()
        return key

    def write(self) -> None:
        write_bytes_atomically(self.path, encode_keys(self.stored), mode=0o600)

    def bearer(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secrets[name]}"}


@pytest.fixture
def key_file(tmp_path: Path) -> KeyFile:
    """One key for each scope, one for all, one that has expired."""
    file = KeyFile(tmp_path / "keys.json")
    for scope in Scope:
        file.add(scope.value, scope)
    file.add("all", *Scope)
    file.add("expired", *Scope, expires=time.time_ns() // 1_000 - DAY)
    return file


@pytest.fixture
def guarded(server_settings: Settings, key_file: KeyFile) -> Iterator[TestClient]:
    """The real application, asking for keys."""
    settings = server_settings.model_copy(update={"keys_file": key_file.path})
    with TestClient(create_app(settings)) as client:
        yield client
