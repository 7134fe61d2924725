"""What a server with secrets says about itself, wherever it says it: none of them stands there."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest

from recsys.bundle import Registry
from serving.security.keys import Scope

if TYPE_CHECKING:
    from tests.serving.security.conftest import KeyFile

PASSWORD = "Swordfish-7731"
USER = "customer-4711-of-a-path"
ADDRESS = f"redis://windfire:{PASSWORD}@127.0.0.1:1/0"  # nobody listens there
BAD = [
    ("POST", "/v1/recommend", b"{", {}),
    ("POST", "/v1/recommend", b'{"n": 0}', {"Content-Type": "application/json"}),
    ("POST", "/v1/events", b"[" * 5_000, {"Content-Type": "application/json"}),
    ("POST", "/v1/events", b"x" * 2_000_000, {}),
    ("DELETE", f"/v1/users/{USER}", b"", {}),
    ("GET", f"/v1/users/{USER}/export", b"", {}),
    ("PUT", "/v1/items/i1", b"{}", {"Content-Type": "application/json"}),
    ("GET", "/nowhere", b"", {}),
    ("GET", "/metrics", b"", {}),
    ("GET", "/readyz", b"", {}),
    ("PATCH", "/v1/events", b"", {}),
]


def started(command: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def damaged(served_registry: Registry, tmp_path: Path) -> Path:
    """A registry whose bundle is refused, so that its reason is told."""
    root = tmp_path / "registry"
    shutil.copytree(served_registry.root, root)
    codes = Registry(root).path(served_registry.current() or "") / "codes.npy"
    data = bytearray(codes.read_bytes())
    data[-1] ^= 1
    codes.write_bytes(data)
    return root


@pytest.fixture
def server(damaged: Path, key_file: KeyFile, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server with keys, a store with a password that does not answer and a bad bundle, as talkative as it can be."""
    port = free_port()
    key_file.add("slow", Scope.RECOMMEND, rate=0.001, burst=1)
    command = [sys.executable, "-c", "from windfire.cli import main; main()", "serve", "--port", str(port)]
    settings = {
        "WINDFIRE_REGISTRY": str(damaged),
        "WINDFIRE_STATE": str(tmp_path / "state"),
        "WINDFIRE_KEYS_FILE": str(key_file.path),
        "WINDFIRE_HISTORY_STORE": ADDRESS,
        "WINDFIRE_LOG_LEVEL": "debug",
        "WINDFIRE_HEAD_TIMEOUT": "PT1S",
    }
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **settings}
    process = started(command, tmp_path / "log", environment)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, process, tmp_path / "log")
        yield url, tmp_path
    finally:
        process.terminate()
        process.wait(60)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(f"{url}/healthz")
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    pytest.fail(log.read_text())


def said_to_requests(url: str, key_file: KeyFile) -> str:
    """Every answer to bad requests under every key, and to what is no HTTP."""
    said = []
    with httpx.Client(base_url=url, timeout=60) as client:
        for name in (*key_file.secrets, "all"):
            for method, path, content, headers in BAD:
                response = client.request(method, path, content=content, headers={**headers, **key_file.bearer(name)})
                said.append(f"{response.headers} {response.text}")
        event = {"event_id": "e1", "user_id": USER, "item_id": "i1", "action": "click"}
        taken = client.post("/v1/events", json={"events": [event]}, headers=key_file.bearer("all"))
        assert taken.json()["accepted"] == 1  # and its merge fails, with a traceback
        wrong = {"Authorization": key_file.bearer("all")["Authorization"] + "x"}
        said.append(client.get("/metrics", headers=wrong).text)
        said.append(client.get("/metrics", params={"key": key_file.secrets["all"]}).text)
    address = urlsplit(url)
    for start in (b"GET / HTTP/1.1\r\nAuthorization", b"nonsense", b"GET / HTTP/1.1\r\nA: " + b"x" * 40_000):
        with closing(socket.create_connection((address.hostname, address.port), timeout=60)) as connection:
            connection.sendall(start + b": Bearer " + key_file.secrets["all"].encode() + b"\r\n")
            said.append(connection.recv(1_000).decode())
    return "\n".join(said)


def secrets_of(key_file: KeyFile) -> set[str]:
    halves = {key.split("_", 2)[2] for key in key_file.secrets.values()}
    return halves | {stored.hash for stored in key_file.stored} | {PASSWORD}


def found_in(text: str, secrets: set[str]) -> list[str]:
    return sorted(secret for secret in secrets if secret in text or secret[:20] in text)


def test_no_secret_stands_in_anything_that_a_server_says(server: tuple[str, Path], key_file: KeyFile) -> None:
    url, folder = server
    answers = said_to_requests(url, key_file)
    key_file.path.write_bytes(key_file.path.read_bytes()[:-30])  # a key file that breaks is told, too
    log = folder / "log"
    deadline = time.monotonic() + 60
    while "keys_refused" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    readiness = httpx.get(f"{url}/readyz", headers=key_file.bearer("admin")).text
    figures = httpx.get(f"{url}/metrics", headers=key_file.bearer("metrics")).text
    texts = {"answers": answers, "readiness": readiness, "metrics": figures, "log": log.read_text()}
    found = {place: found_in(text, secrets_of(key_file)) for place, text in texts.items()}
    assert found == {"answers": [], "readiness": [], "metrics": [], "log": []}
    assert "bundle_refused: codes.npy" in readiness  # an administrator sees why
    assert USER not in texts["log"]
    assert USER not in texts["metrics"]
    events = {json.loads(line)["event"] for line in texts["log"].splitlines()}
    assert {"history_merge_failed", "bundle_refused", "keys_refused"} <= events
    state = [path for path in (folder / "state").rglob("*") if path.is_file()]
    held = b"".join(path.read_bytes() for path in state).decode("latin-1")
    assert found_in(held, secrets_of(key_file)) == []


def test_the_scan_finds_what_it_looks_for(key_file: KeyFile) -> None:
    secrets = secrets_of(key_file)
    for one in secrets:
        assert found_in(f"... {one[:25]} ...", secrets) == [one]


def test_an_error_of_the_settings_shows_no_password(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from windfire.cli import main; main()", "serve", "--port", "0"]
    shown: dict[str, Any] = {"WINDFIRE_HISTORY_STORE": f"redis:/{PASSWORD}@host", "WINDFIRE_STATE": str(tmp_path / "s")}
    result = subprocess.run(command, env={**os.environ, **shown}, capture_output=True, text=True, timeout=200)
    assert result.returncode == 2
    assert "WINDFIRE_HISTORY_STORE" in result.stderr
    assert PASSWORD not in result.stdout + result.stderr
