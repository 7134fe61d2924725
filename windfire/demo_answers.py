"""The demonstration's server, the questions it is asked, and what is checked of the answers."""

from __future__ import annotations

import http.client
import json
import os
import statistics
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from recsys.errors import UnavailableError
from windfire.demo import windfire

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from recsys.bundle import Bundle
    from recsys.datasets.prepared import Sequences

HOST: Final = "127.0.0.1"
ITEMS: Final = 10
_READY_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 20.0
_TIMED_REQUESTS: Final = 50
_SHORT, _LONG = 5, 20  # a history that shows something and fits on the screen


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer over HTTP.

    Attributes:
        user_id: who was asked for.
        history: item ids that the server knows of the user, oldest first.
        status: of the HTTP answer.
        body: its JSON.
        milliseconds: from sending the request to the last byte of the answer.
    """

    user_id: str
    history: list[str]
    status: int
    body: dict[str, Any]
    milliseconds: float


@contextmanager
def running_server(
    registry: Path, state: Path, port: int, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `windfire serve` in a process of its own until the block ends; it is ready when the block begins.

    `environment` is laid over this process's.

    Raises:
        UnavailableError: it ended, or did not become ready in two minutes; shows the end of its log.
    """
    arguments = ("serve", "--registry", str(registry), "--state", str(state), "--host", HOST, "--port", str(port))
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603
            windfire(arguments), stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
    try:
        _wait_until_ready(process, port, log)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if call(port, "GET", "/readyz")[0] == http.client.OK:
                return
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.1)
    what = "is not ready" if process.poll() is None else f"ended with status {process.returncode}"
    tail = log.read_text(errors="replace")[-2_000:]
    raise UnavailableError(f"the server {what}; the end of its log:\n{tail}", remedy=f"see {log}")


def call(port: int, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    """One HTTP request to the local server; a body that is no JSON object is returned as {"text": ...}."""
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
        response = connection.getresponse()
        text = response.read().decode("utf-8", "replace")
    finally:
        connection.close()
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    return response.status, value if isinstance(value, dict) else {"text": text}


def choose_users(sequences: Sequences, count: int) -> list[int]:
    """Users to show, spread over all: with histories of 5 to 20 events where there are enough, else the longest."""
    lengths = np.diff(sequences.offsets)
    good = np.flatnonzero((lengths >= _SHORT) & (lengths <= _LONG))
    if len(good) < count:
        good = np.sort(np.argsort(-lengths, kind="stable")[:count])
    places = np.linspace(0, len(good) - 1, min(count, len(good))).astype(int)
    return [int(good[place]) for place in places]


def ask(port: int, user_id: str, history: list[str]) -> Answer:
    """Ask for ten items for a user by name; the server reads the history from its own store."""
    started = time.perf_counter()
    status, body = call(port, "POST", "/v1/recommend", {"user_id": user_id, "n": ITEMS, "exclude_seen": True})
    return Answer(user_id, history, status, body, (time.perf_counter() - started) * 1e3)


def median_latency(port: int, users: Sequence[str]) -> float:
    """Median milliseconds of 50 requests, one after the other, over some users."""
    return statistics.median(ask(port, users[turn % len(users)], []).milliseconds for turn in range(_TIMED_REQUESTS))


def faults(answer: Answer, bundle: Bundle) -> list[str]:
    """What is wrong with an answer; empty when all is well."""
    if answer.status != http.client.OK:
        return [f"{answer.user_id}: HTTP status {answer.status}: {answer.body}"]
    found = []
    items = [item["item_id"] for item in answer.body["items"]]
    possible = min(ITEMS, _eligible(bundle, answer.history))
    if len(items) != possible:
        found.append(f"{len(items)} items instead of {possible}")
    if not items:
        found.append("no item")
    if len(set(items)) < len(items):
        found.append("an item stands twice")
    if seen := set(items) & set(answer.history):
        found.append(f"items of the history: {sorted(seen)}")
    if (bundle.item_ids.lookup(items) < 0).any():
        found.append("an item that is not in the catalog")
    if answer.body["served_by"] != "nezha":
        found.append(f"served by {answer.body['served_by']}")
    return [f"{answer.user_id}: {fault}" for fault in found]


def _eligible(bundle: Bundle, history: list[str]) -> int:
    """How many items may be shown behind a history now."""
    available = bundle.catalog.available(time.time_ns() // 1_000)
    mask = np.ones(len(bundle.catalog), dtype=bool) if available is None else available.copy()
    seen = bundle.item_ids.lookup(history)
    mask[seen[seen >= 0]] = False
    return int(mask.sum())
