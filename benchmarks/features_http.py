"""How soon an event is in a user's next recommendation, over HTTP, on each store of histories."""

from __future__ import annotations

import http.client
import json
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.figures import Figure
from benchmarks.redis_server import free_port
from recsys.bundle import Registry
from recsys.errors import DataError
from windfire.demo_answers import HOST, running_server

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    Times = npt.NDArray[np.float64]

_USERS: Final = 50
_ITEMS: Final = 1_000
_TRIES: Final = 100
_WARM_UP: Final = 20


def event_visible(
    stores: Mapping[str, str],
    registry: Path,
    rounds: int,
    rng: np.random.Generator,
    quantiles: Callable[[str, Times, np.random.Generator, str], list[Figure]],
) -> list[Figure]:
    """Send an event, ask for the user's recommendation, and time both until an answer knows the event.

    Args:
        stores: name to the address of the histories' store; empty = embedded in the server's state.
        registry: of the bundle that answers.
        rounds: events per store.
        rng: draws users and items, and resamples.
        quantiles: makes figures of milliseconds.

    Raises:
        DataError: no item in the bundle, or an event that never became visible.
        UnavailableError: the server did not start.
    """
    catalog = Registry(registry).open_current(verify=False).catalog
    items = catalog.index.ids(rng.choice(len(catalog), min(len(catalog), _ITEMS), replace=False))
    figures = []
    for name, address in stores.items():
        with tempfile.TemporaryDirectory() as folder:
            port = free_port()
            environment = {"WINDFIRE_HISTORY_STORE": address}
            with running_server(registry, Path(folder) / "state", port, Path(folder) / "log", environment):
                times, at_once = _rounds(port, items, rounds, rng)
        stem = f"features.{name}.event_visible"
        note = "from sending the event to the last byte of the recommendation that knows it"
        figures += quantiles(stem, times, rng, note)
        share = at_once / rounds
        figures.append(Figure(f"{stem}.at_once", share, "share", n=rounds, note="in the first answer"))
    return figures


def _rounds(port: int, items: list[str], rounds: int, rng: np.random.Generator) -> tuple[Times, int]:
    """(R,) milliseconds, and how many events the first answer knew."""
    known = dict.fromkeys((f"user-{number}" for number in range(_USERS)), 0)
    times, at_once = np.zeros(rounds), 0
    with closing(http.client.HTTPConnection(HOST, port, timeout=30)) as connection:
        for number in range(-_WARM_UP, rounds):
            user, item = f"user-{rng.integers(_USERS)}", items[rng.integers(len(items))]
            row = {"event_id": f"e{number}", "user_id": user, "item_id": item, "action": "click"}
            known[user] += 1
            began = time.perf_counter_ns()
            _post(connection, "/v1/events", {"events": [row]})
            tries = 0
            while _post(connection, "/v1/recommend", {"user_id": user})["counts"]["history"] < min(known[user], 1_000):
                tries += 1
                if tries > _TRIES:
                    raise DataError("an event does not become visible", field="event_id", value=row["event_id"])
            if number >= 0:
                times[number] = (time.perf_counter_ns() - began) / 1e6
                at_once += tries == 0
    return times, at_once


def _post(connection: http.client.HTTPConnection, path: str, body: dict[str, Any]) -> dict[str, Any]:
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer: dict[str, Any] = json.loads(response.read())
    if response.status != http.client.OK:
        raise DataError("the server refuses", field=path, value=answer)
    return answer
