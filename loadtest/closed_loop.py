"""The closed loop, as most load tests have it: who waits for an answer sends nothing, and that is counted nowhere."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from loadtest.connection import Ticket
from loadtest.open_loop import take
from loadtest.running import Load, Measurement, Run, together

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadtest.answers import Judge
    from loadtest.target import Request, Target


async def run_closed(
    target: Target, load: Load, requests: Iterator[Request], users: int, judge: Judge | None = None
) -> Run:
    """Let `users` send at a constant pace, each its next request only behind the answer to its last.

    A user that comes late goes on at once, and turns it has missed are not made up. Latency counts from the actual
    sending. It stands beside the open loop to show what that way of measuring leaves out; it is no measurement of a
    service under a stream of independent users.

    Args:
        target: the server.
        load: `rate` is that of all users together where the server keeps up.
        requests: one is taken per turn.
        users: each has one connection.
        judge: looks at every 2xx answer.

    Raises:
        UnreachableError: no connection before the start.
        SettingsError: `requests` ended before the window.
    """
    measurement = Measurement(target, load, judge)
    with measurement.open() as pool:
        await pool.warm(min(users, load.connections))
        interval = users / load.rate
        origin = measurement.start()
        await together(
            _user(measurement, requests, origin + interval * user / users, interval) for user in range(users)
        )
        measurement.all_sent()
        return await measurement.result()


async def _user(measurement: Measurement, requests: Iterator[Request], turn: float, interval: float) -> None:
    while turn < measurement.closes:
        await asyncio.sleep(max(0.0, turn - time.monotonic()))
        ticket = Ticket(take(requests), time.monotonic())
        await measurement.answer(ticket)
        turn = max(turn + interval, time.monotonic())
