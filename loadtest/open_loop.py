"""The open loop: requests are sent when they are due, whether or not earlier ones were answered."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import numpy as np

from loadtest.alarm import Alarm
from loadtest.arrivals import poisson_arrivals
from loadtest.connection import Ticket
from loadtest.errors import SettingsError
from loadtest.running import Load, Measurement, Run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadtest.answers import Judge
    from loadtest.target import Request, Target

_BURST: Final = 32  # requests that are sent in a row before answers are looked at
_WARM_SHARE: Final = 0.05  # of the rate: connections that are opened before the start


async def run_open(target: Target, load: Load, requests: Iterator[Request], judge: Judge | None = None) -> Run:
    """Send a Poisson stream; latency counts from the time a request was due, so that no delay hides the next.

    Args:
        target: the server.
        load: rate, window, limits and seed.
        requests: one is taken per arrival.
        judge: looks at every 2xx answer.

    Raises:
        UnreachableError: no connection before the start; later failures are outcomes of their requests.
        SettingsError: `requests` ended before the window.
    """
    measurement = Measurement(target, load, judge)
    with measurement.open() as pool:
        await pool.warm(max(2, round(load.rate * _WARM_SHARE)))
        sender = _Sender(measurement, requests, poisson_arrivals(load.rate, np.random.default_rng(load.seed)))
        try:
            await sender.run()
        finally:
            sender.close()
        return await measurement.result()


class _Sender:
    """Submits what is due whenever its alarm rings."""

    def __init__(self, measurement: Measurement, requests: Iterator[Request], arrivals: Iterator[float]) -> None:
        self._measurement = measurement
        self._requests = requests
        self._arrivals = arrivals
        self._loop = asyncio.get_running_loop()
        self._alarm = Alarm(self._loop, self._due)
        self._sent: asyncio.Future[None] = self._loop.create_future()
        self._origin = self._next = 0.0

    async def run(self) -> None:
        self._origin = self._measurement.start()
        self._next = self._origin + next(self._arrivals)
        self._alarm.set(self._next)
        await self._sent

    def close(self) -> None:
        self._alarm.close()

    def _due(self) -> None:
        try:
            self._submit_due()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is raised where the run is awaited
            if not self._sent.done():
                self._sent.set_exception(error)

    def _submit_due(self) -> None:
        measurement, now = self._measurement, time.monotonic()
        for _ in range(_BURST):
            if self._next >= measurement.closes:
                measurement.all_sent()
                self._sent.set_result(None)
                return
            if self._next > now:
                break
            measurement.pool.submit(Ticket(take(self._requests), self._next))
            self._next = self._origin + next(self._arrivals)
        self._alarm.set(self._next)  # a time that is past rings at once, behind the answers that have come


def take(requests: Iterator[Request]) -> Request:
    """The next request.

    Raises:
        SettingsError: there is none.
    """
    try:
        return next(requests)
    except StopIteration:
        raise SettingsError(
            "ended before the run", field="requests", value="too few", remedy="give an iterator without end"
        ) from None
