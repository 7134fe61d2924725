"""The child's side: one worker or the learner behind a socket. Started by `training.rl.worker`.

A child answers one message after the other and ends when its controller is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from recsys.errors import DataError
from recsys.storage import write_bytes_atomically
from training.rl.wire import pack, pack_arrays, unpack, unpack_arrays

if TYPE_CHECKING:
    from collections.abc import Callable

    from training.rl.protocols import Learner, RewardWorker, RolloutWorker
    from training.rl.wire import Arrays

    Answer = tuple[dict[str, Any], Arrays]
    Serve = Callable[[dict[str, Any], Arrays], Answer]

CHECKPOINT = "checkpoint.safetensors"
_VERSION = "rl.version"  # names of the core's own entries in the checkpoint's metadata
_FINGERPRINT = "rl.fingerprint"


def weights_path(directory: Path, version: int) -> Path:
    """Where the learner leaves the weights of a version."""
    return directory / "weights" / f"{version}.safetensors"


class RolloutServer:
    """Loads the weights that a ticket names, where they are not loaded yet, and rolls."""

    def __init__(self, worker: RolloutWorker, directory: Path) -> None:
        self._worker = worker
        self._directory = directory
        self._loaded: tuple[int, ...] | None = None

    def __call__(self, head: dict[str, Any], arrays: Arrays) -> Answer:
        """Serve one ticket."""
        version = int(head["version"])
        path = weights_path(self._directory, version)
        with path.open("rb") as file:
            # After a learner came back from its checkpoint, a version may be another file than before.
            entry = path.stat()
            key = (version, entry.st_ino, entry.st_mtime_ns)
            if key != self._loaded:
                self._worker.load(unpack_arrays(file.read()))
                self._loaded = key
        return {}, self._worker.roll(arrays["prompt_ids"], version, arrays["seeds"])


class LearnerServer:
    """Steps, publishes weights and keeps the checkpoint, which is the durable state of the whole run."""

    def __init__(self, learner: Learner, directory: Path, fingerprint: str, alpha: int, lock: IO[str]) -> None:
        self._learner = learner
        self._directory = directory
        self._fingerprint = fingerprint
        self._alpha = alpha
        self._lock = lock  # open as long as this lives
        self.version = self._saved = self._restored()
        self._publish()
        if self.version == 0:
            self._save()

    def __call__(self, head: dict[str, Any], arrays: Arrays) -> Answer:
        """Train one batch: weights first, then the checkpoint that needs them, then the answer."""
        if head["version"] != self.version:
            raise DataError(
                "not the next step", field="version", value=str(head["version"]), remedy=f"train {self.version}"
            )
        metrics = self._learner.step(arrays)
        self.version += 1
        self._publish()
        if head["save"] or self._learner.done:
            self._save()
        return {**self.hello, "metrics": {name: float(value) for name, value in metrics.items()}}, {}

    @property
    def hello(self) -> dict[str, Any]:
        """Where the learner stands."""
        return {"version": self.version, "done": bool(self._learner.done)}

    def _publish(self) -> None:
        write_bytes_atomically(weights_path(self._directory, self.version), pack_arrays(self._learner.weights()))
        self._clean()

    def _clean(self) -> None:
        for path in (self._directory / "weights").glob("*.safetensors"):
            if path.stem.isdigit() and not self._needed(int(path.stem)):
                path.unlink()

    def _needed(self, version: int) -> bool:
        """By rollouts of this process's life, or by those of a run that goes on from the checkpoint."""
        return version >= self.version - self._alpha or self._saved - self._alpha <= version <= self._saved

    def _save(self) -> None:
        head = {_VERSION: self.version, _FINGERPRINT: self._fingerprint}
        write_bytes_atomically(self._directory / CHECKPOINT, pack_checkpoint(head, self._learner.state()))
        self._saved = self.version
        self._clean()

    def _restored(self) -> int:
        path = self._directory / CHECKPOINT
        if not path.exists():
            return 0
        with safe_open(path, framework="np") as file:
            metadata = file.metadata()
        if metadata[_FINGERPRINT] != self._fingerprint:
            raise DataError(
                "the checkpoint belongs to another plan or other parts",
                field="checkpoint",
                value=CHECKPOINT,
                remedy="choose another directory, or remove this one to start again",
            )
        self._learner.restore(unpack_arrays(path.read_bytes()))
        return int(metadata[_VERSION])


def pack_checkpoint(head: dict[str, Any], state: Arrays) -> bytes:
    """The learner's state as a safetensors file with the core's entries in its metadata."""
    owned = {name: np.asarray(value, order="C") for name, value in state.items()}
    return bytes(save(owned, metadata={name: str(value) for name, value in head.items()}))


def build(factory: str, options: dict[str, Any]) -> Any:
    """Call a factory by its name.

    Raises:
        ImportError: there is no such module.
        AttributeError: the module has no such callable.
    """
    module, _, name = factory.partition(":")
    return getattr(importlib.import_module(module), name)(options)


def _serve(role: str, settings: dict[str, Any]) -> tuple[Serve, dict[str, Any]]:
    directory = Path(settings["directory"])
    if role == "learner":
        # Held until the process ends: one that outlives its controller for a moment must not write beside the next.
        lock = (directory / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        learner = build(settings["factory"], settings["options"])
        server = LearnerServer(learner, directory, settings["fingerprint"], settings["alpha"], lock)
        return server, server.hello
    worker = build(settings["factory"], settings["options"])
    if role == "rollout":
        return RolloutServer(worker, directory), {}
    reward = cast("RewardWorker", worker)
    return lambda _, arrays: ({}, reward.score(arrays)), {}


def main(role: str, settings: dict[str, Any], connection: Connection) -> None:
    """Say hello, then answer until the controller is gone. Every failure is an answer that names it."""
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            serve, hello = _serve(role, settings)
        except Exception as error:  # noqa: BLE001 - the controller ends the run with this text
            connection.send_bytes(pack({"error": f"{type(error).__name__}: {error}"}))
            return
        connection.send_bytes(pack(hello))
        while True:
            head, arrays = unpack(connection.recv_bytes())
            try:
                answer = pack(*serve(head, arrays))
            except Exception as error:  # noqa: BLE001 - the controller counts it and tries elsewhere
                answer = pack({"error": f"{type(error).__name__}: {error}"})
            connection.send_bytes(answer)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt at the terminal is the controller's to answer
    main(sys.argv[1], json.loads(sys.argv[2]), Connection(int(sys.argv[3])))
