"""What servers can do to a client: every request ends in exactly one outcome of the right kind."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from loadtest.answers import Judge, not_empty, served_by
from loadtest.closed_loop import run_closed
from loadtest.errors import SettingsError, UnreachableError
from loadtest.open_loop import run_open
from loadtest.running import Load, Run, run_in_loop
from loadtest.summary import summarize
from loadtest.target import Request, Target

LOAD = Load(rate=300, seconds=0.3, deadline=0.2, timeout=1.0, connections=4, seed=3)
BODY = b'{"request_id":"r","served_by":"nezha","items":[{"item_id":"a"}]}'


def answer(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


GOOD = answer(200, BODY)


def measured(serving: Callable[..., Any], handler: Callable[..., Any], load: Load = LOAD) -> Run:
    async def go() -> Run:
        async with serving(handler) as target:
            return await run_open(target, load, itertools.repeat(target.request("recommend", "/v1/recommend", b"{}")))

    return run_in_loop(go())


def outcomes(run: Run) -> Counter[str]:
    return Counter(run.samples.outcomes[number] for number in run.samples.outcome)


def test_good_answers(serving: Callable[..., Any]) -> None:
    deadlines: list[int] = []

    async def handle(number: int, request: bytes, writer: asyncio.StreamWriter) -> None:
        deadlines.append(int(request.split(b"X-Deadline-Ms: ")[1].split(b"\r\n")[0]))
        writer.write(GOOD[: len(GOOD) // 2])  # in two pieces
        await writer.drain()
        await asyncio.sleep(0)
        writer.write(GOOD[len(GOOD) // 2 :])

    run = measured(serving, handle)
    assert outcomes(run) == {"ok": run.samples.offered}
    assert run.samples.offered == len(deadlines) > 50
    assert summarize(run).tiers == {"nezha": 1.0}
    assert max(deadlines) <= 200
    assert min(deadlines) >= 1
    assert (run.samples.latency >= run.samples.from_send - 1e-6).all()


def test_a_client_that_stands_still_hides_nothing(serving: Callable[..., Any]) -> None:
    """What was due meanwhile is sent afterwards, and is late from the time at which it was due."""

    async def handle(number: int, request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(GOOD)

    def requests(target: Target) -> Iterator[Request]:
        request = target.request("recommend", "/v1/recommend", b"{}")
        for number in itertools.count():
            time.sleep(0.3 * (number == 60))
            yield request

    async def go() -> Run:
        async with serving(handle) as target:
            return await run_open(target, replace(LOAD, seconds=0.7, deadline=1.0), requests(target))

    samples = run_in_loop(go()).samples
    assert samples.offered == pytest.approx(210, abs=60)
    late = samples.latency - samples.from_send > 0.1
    assert late.sum() > 40  # due in the first two thirds of the stop
    assert np.ptp(samples.at[late]) > 0.15


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (answer(503, b"{}", "retry-after: 1"), "http_503"),
        (answer(500, b"oops", "connection: close"), "http_500"),
        (b"\x16\x03\x01nonsense\r\n\r\n", "malformed"),
        (GOOD + GOOD, "malformed"),  # the second one nobody asked for
        (GOOD + GOOD[:-9], "malformed"),
    ],
    ids=["refused", "fault", "no_http", "twice", "once_and_a_part"],
)
def test_bad_answers(serving: Callable[..., Any], reply: bytes, kind: str) -> None:
    async def handle(number: int, request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply)

    found = outcomes(measured(serving, handle))
    assert set(found) == {kind}


def test_a_judge_names_what_is_wrong_and_its_own_faults_are_raised(serving: Callable[..., Any]) -> None:
    async def handle(number: int, request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(200, b"%d" % (number % 2)))

    def judged(judge: Judge) -> Run:
        async def go() -> Run:
            async with serving(handle) as target:
                requests = itertools.repeat(target.request("recommend", "/v1/recommend", b"{}"))
                return await run_open(target, LOAD, requests, judge)

        return run_in_loop(go())

    run = judged(lambda request, status, body: {b"0": None, b"1": "odd"}[body])
    found = outcomes(run)
    assert set(found) == {"ok", "invalid_odd"}
    assert abs(found["ok"] - found["invalid_odd"]) <= 1
    with pytest.raises(ZeroDivisionError):
        judged(lambda request, status, body: str(1 // int(body)))


def test_an_empty_list_is_no_good_answer() -> None:
    recommend, events = (Target("h", 1).request(kind, "/", b"") for kind in ("recommend", "events"))
    empty = b'{"served_by": "nezha", "items": [ ]}'
    assert not_empty(recommend, 200, empty) == "empty"
    assert [not_empty(recommend, 200, body) for body in (b"", b"{}", b"<html>a login page</html>")] == ["empty"] * 3
    assert not_empty(recommend, 200, BODY) is None
    assert not_empty(events, 200, empty) is None
    assert (served_by(empty), served_by(BODY), served_by(b"{}")) == ("nezha", "nezha", "")


def test_a_server_that_hangs_up_on_every_third_request(serving: Callable[..., Any]) -> None:
    async def handle(number: int, request: bytes, writer: asyncio.StreamWriter) -> None:
        if number % 3 == 2:
            writer.close()
        else:
            writer.write(GOOD)

    run = measured(serving, handle)
    found, offered = outcomes(run), run.samples.offered
    assert set(found) == {"ok", "disconnected"}
    assert found["disconnected"] == offered // 3
    assert found.total() == offered


def test_a_server_that_never_answers(serving: Callable[..., Any]) -> None:
    async def handle(number: int, request: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    load = Load(rate=100, seconds=0.4, deadline=0.1, timeout=0.3, connections=3)
    run = measured(serving, handle, load)
    found = outcomes(run)
    # what is given up frees its connection for one that waits; others wait until their own time is over
    assert set(found) == {"timeout", "no_connection"}
    assert found.total() == run.samples.offered
    assert run.samples.latency.min() >= 0.3
    assert summarize(run).goodput_share.value == 0
    assert run.longest_queue > 3


def test_a_server_that_goes_away_is_not_hidden(serving: Callable[..., Any]) -> None:
    async def go() -> Run:
        async def handle(number: int, request: bytes, writer: asyncio.StreamWriter) -> None:
            writer.write(GOOD)
            if number >= 20:
                writer.write_eof()
                stop.set()

        stop = asyncio.Event()
        server = serving(handle)
        target = await server.__aenter__()

        async def close() -> None:
            await stop.wait()
            await server.__aexit__(None, None, None)

        closing = asyncio.create_task(close())
        requests = itertools.repeat(target.request("recommend", "/v1/recommend", b"{}"))
        run = await run_open(target, LOAD, requests)
        await closing
        return run

    run = run_in_loop(go())
    found = outcomes(run)
    assert found["ok"] >= 20
    assert found["connect_refused"] > 0.3 * run.samples.offered
    assert found.total() == run.samples.offered
    assert summarize(run).latency_ms["p95"].value is None


def test_nobody_there(nobody: str) -> None:
    target = Target.parse(nobody)
    requests = itertools.repeat(target.request("recommend", "/", b"{}"))
    with pytest.raises(UnreachableError) as error:
        run_in_loop(run_open(target, LOAD, requests))
    assert (error.value.field, error.value.value) == ("url", nobody)


@pytest.mark.parametrize("loop", [run_open, lambda target, load, requests: run_closed(target, load, requests, 3)])
def test_requests_that_end_too_soon(serving: Callable[..., Any], loop: Callable[..., Any]) -> None:
    async def handle(number: int, request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(GOOD)

    async def go() -> None:
        async with serving(handle) as target:
            await loop(target, LOAD, iter([target.request("recommend", "/", b"{}")] * 5))

    with pytest.raises(SettingsError, match="ended before the run"):
        run_in_loop(go())


def test_the_closed_loop_waits_for_its_answers(serving: Callable[..., Any]) -> None:
    most = under_way = 0

    async def handle(number: int, request: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal most, under_way
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.05)
        under_way -= 1
        writer.write(GOOD)

    async def go() -> Run:
        async with serving(handle) as target:
            requests = itertools.repeat(target.request("recommend", "/", b"{}"))
            return await run_closed(target, Load(rate=1000, seconds=0.5, deadline=0.2), requests, 3)

    run = run_in_loop(go())
    assert most == 3
    # three users with 50 ms per answer send at most 60 in a second, whatever was asked for, and see nothing of it
    assert 0 < run.samples.offered <= 33
    assert run.samples.latency.max() < 0.5
    assert outcomes(run) == {"ok": run.samples.offered}


def test_the_warm_up_is_not_measured_but_its_errors_are_told(serving: Callable[..., Any]) -> None:
    async def handle(number: int, request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(503, b"") if number < 5 else GOOD)

    run = measured(serving, handle, Load(rate=200, seconds=0.3, warmup=0.3, deadline=0.2, seed=3))
    assert outcomes(run) == {"ok": run.samples.offered}
    assert run.warmup_errors == {"http_503": 5}
    assert run.samples.at.min() >= 0
    assert run.samples.at.max() < 0.3
    assert 30 < run.samples.offered < 90


@pytest.mark.parametrize(
    "values", [{"rate": 0}, {"seconds": -1}, {"deadline": 0}, {"warmup": -1}, {"timeout": 0.05}, {"connections": 0},
               {"rate": float("inf")}, {"warmup": float("nan")}],
)  # fmt: skip
def test_a_load_that_cannot_be(values: dict[str, float]) -> None:
    with pytest.raises(SettingsError) as error:
        Load(**{"rate": 10, "seconds": 1, **values})  # type: ignore[arg-type]
    assert error.value.field in values
