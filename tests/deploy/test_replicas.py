"""The two helpers of the images, as processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SLOT, HEALTH = ROOT / "deploy" / "slot.py", ROOT / "deploy" / "health.py"
SAYS = "import os, sys; print(sys.argv[1], os.environ['WINDFIRE_X'], os.environ['Y'], flush=True); sys.stdin.read()"


def _environment(tmp_path: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "SLOT_FILE": str(tmp_path / "slot"), **more}


def _start(stack: ExitStack, tmp_path: Path) -> tuple[subprocess.Popen[str], str]:
    """A replica whose command says what it was given and lives until its standard input ends."""
    command = [sys.executable, str(SLOT), str(tmp_path / "state"), sys.executable, "-c", SAYS, "{slot}/{engine}"]
    environment = _environment(tmp_path, ENGINES="2", WINDFIRE_X="e{engine}", Y="{slot}")
    pipe = subprocess.PIPE
    process = stack.enter_context(subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True))
    stack.callback(process.kill)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_every_replica_has_a_slot_and_a_dead_ones_is_taken_again(tmp_path: Path) -> None:
    with ExitStack() as stack:
        said = [_start(stack, tmp_path) for _ in range(4)]
        assert [line for _, line in said] == ["0/0 e0 {slot}", "1/1 e1 {slot}", "2/0 e0 {slot}", "3/1 e1 {slot}"]
        assert (tmp_path / "slot").read_text() == "3"
        said[1][0].kill()
        said[1][0].wait()
        assert _start(stack, tmp_path)[1] == "1/1 e1 {slot}"
        assert _start(stack, tmp_path)[1] == "4/0 e0 {slot}"


@pytest.mark.parametrize(("engines", "words"), [("0", ["x", "y"]), ("two", ["x", "y"]), ("1", ["x"])])
def test_a_slip_is_named(tmp_path: Path, engines: str, words: list[str]) -> None:
    environment = _environment(tmp_path, ENGINES=engines)
    done = subprocess.run([sys.executable, str(SLOT), *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: windfire-slot DIRECTORY COMMAND...")


class _Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/readyz" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Ready) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        serving.join()


def _health(tmp_path: Path, *targets: str) -> tuple[int, str]:
    environment = _environment(tmp_path, http_proxy="http://127.0.0.1:1")
    done = subprocess.run([sys.executable, str(HEALTH), *targets], env=environment, capture_output=True, text=True)
    return done.returncode, done.stderr.strip()


def test_a_server_is_well_when_it_says_200(address: str, tmp_path: Path) -> None:
    assert _health(tmp_path, f"{address}/readyz") == (0, "")
    assert _health(tmp_path, f"{address}/healthz") == (1, f"{address}/healthz: status 503")
    assert _health(tmp_path, "http://127.0.0.1:1/readyz")[0] == 1
    assert _health(tmp_path) == (2, "usage: windfire-health TARGET")


@pytest.mark.parametrize(("greeting", "status"), [(b"hello", 0), (b"", 1)])
def test_an_engine_is_well_when_it_greets(tmp_path: Path, greeting: bytes, status: int) -> None:
    (tmp_path / "slot").write_text("7")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "engine-7.sock"))
        listening.listen()

        def greet() -> None:
            with listening.accept()[0] as link:
                link.sendall(greeting)

        serving = threading.Thread(target=greet)
        serving.start()
        assert _health(tmp_path, f"{tmp_path}/engine-{{slot}}.sock")[0] == status
        serving.join()


def test_an_engine_that_is_not_there_is_not_well(tmp_path: Path) -> None:
    status, reason = _health(tmp_path, f"{tmp_path}/engine.sock")
    assert (status, reason.endswith("No such file or directory")) == (1, True)
