from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from benchmarks.redis_server import RedisServer
from feature_store.feast_format import entity_key, field_name, time_field
from feature_store.fields import Field, Kind
from feature_store.opening import Timeouts, open_async_hashes, open_hashes
from feature_store.reading import Reading, Reason, Status
from feature_store.redis_hashes import FeastHashes, HashLayout, PlainHashes
from feature_store.store import now_micros
from feature_store.views import View
from recsys.errors import ConfigError, InputError

GOLDEN = json.loads(Path(__file__).with_name("feast_golden.json").read_text())["values"]
PATIENT = Timeouts(connect=timedelta(seconds=20), answer=timedelta(seconds=20))
FIELDS = (
    Field("clicks", Kind.INT64), Field("spent", Kind.FLOAT64), Field("member", Kind.BOOL), Field("city", Kind.STRING),
    Field("brands", Kind.STRING_LIST, 3), Field("taste", Kind.FLOAT32_VECTOR, 2),
    Field("age", Kind.INT64, optional=True),
)  # fmt: skip
PROFILE = View("profile", "user", FIELDS, 1, "team", ttl=timedelta(hours=1))
BARE = View("bare", "user", (Field("clicks", Kind.INT64),), 1, "team")
PLAIN = PlainHashes("shop:{entity}:{view}", time_field="at")
TEXTS = {"clicks": "3", "spent": "1.5", "member": "true", "city": "Köln", "brands": '["a","b"]', "taste": "[0.5,-2]"}
FEAST = FeastHashes("shop", "user_id")
WRITTEN = {
    "clicks": "int32", "spent": "float", "member": "bool", "city": "string", "brands": "string_list",
    "taste": "float_list", "age": "null",
}  # fmt: skip


@pytest.fixture
def raw(server: RedisServer) -> Iterator[Any]:
    with redis.Redis(port=server.port) as client:
        yield client


def both(server: RedisServer, layout: HashLayout, wanted: list[tuple[View, str]]) -> list[Reading]:
    """What threads read; coroutines must read the same."""

    async def awaited() -> list[Reading]:
        reader = open_async_hashes(server.address, layout, PATIENT)
        found = await reader.read(wanted, deadline=20)
        assert await reader.read([]) == []
        await reader.close()
        return found

    reader = open_hashes(server.address, layout, PATIENT)
    found = reader.read(wanted, deadline=20)
    assert reader.read([]) == []
    reader.close()
    assert [str(reading) for reading in asyncio.run(awaited())] == [str(reading) for reading in found]
    return found


def plain(reading: Reading) -> dict[str, Any]:
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in (reading.values or {}).items()
    }


def test_plain_hashes_are_views_with_their_ages(server: RedisServer, raw: Any) -> None:
    now = now_micros() // 1_000_000
    for user, age in (("ann", 0), ("old", 4_000), ("gone", 7_300)):
        raw.hset(f"shop:{user}:profile", mapping={**TEXTS, "at": now - age})
    readings = both(server, PLAIN, [(PROFILE, user) for user in ("ann", "old", "gone", "nobody")])
    assert [(reading.status, reading.reason) for reading in readings] == [
        (Status.PRESENT, Reason.NONE), (Status.STALE, Reason.TTL), (Status.MISSING, Reason.ABSENT),
        (Status.MISSING, Reason.ABSENT),
    ]  # fmt: skip
    assert plain(readings[0]) == plain(readings[1]) == {
        "clicks": 3, "spent": 1.5, "member": True, "city": "Köln", "brands": ["a", "b"], "taste": [0.5, -2.0],
        "age": None,
    }  # fmt: skip
    assert readings[1].event_time == (now - 4_000) * 1_000_000


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("clicks", "many"), ("spent", "nan"), ("member", "2"), ("city", b"\xff"), ("brands", "[1]"), ("taste", "[1]"),
        ("taste", "[" * 100_000), ("at", "yesterday"), ("at", "1e300"), ("at", "nan"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_corrupt(server: RedisServer, raw: Any, field: str, text: Any) -> None:
    raw.hset("shop:bad:profile", mapping={**TEXTS, "at": now_micros() // 1_000_000, field: text})
    assert [reading.reason for reading in both(server, PLAIN, [(PROFILE, "bad")])] == [Reason.CORRUPT]


def test_a_hash_without_a_needed_field_or_of_another_view_or_type(server: RedisServer, raw: Any) -> None:
    raw.hset("shop:half:profile", mapping={"clicks": 1, "at": now_micros() // 1_000_000})
    raw.hset("shop:timeless:profile", mapping=TEXTS)
    raw.set("shop:string:profile", "x")
    readings = both(server, PLAIN, [(PROFILE, user) for user in ("half", "timeless", "string")])
    assert [reading.reason for reading in readings] == [Reason.CORRUPT, Reason.ABSENT, Reason.ABSENT]


def test_hashes_without_times_are_for_views_without_a_ttl(server: RedisServer, raw: Any) -> None:
    raw.hset("eve", mapping={"clicks": 7, "city": "x"})
    (reading,) = both(server, PlainHashes(), [(BARE, "eve")])
    assert (reading.status, reading.event_time, reading.values) == (Status.PRESENT, None, {"clicks": 7})
    with pytest.raises(ConfigError, match="ttl"):
        open_hashes(server.address, PlainHashes()).read([(PROFILE, "eve")])
    with pytest.raises(ConfigError, match="entity"):
        PlainHashes("users")


def test_what_feast_wrote_is_a_view(server: RedisServer, raw: Any) -> None:
    for user, seconds in (("ann", now_micros() // 1_000_000), ("old", now_micros() // 1_000_000 - 4_000)):
        stamp = b"\x08" + varint(seconds)
        written = {field_name("profile", name): bytes.fromhex(GOLDEN[kind]["raw"]) for name, kind in WRITTEN.items()}
        raw.hset(entity_key("shop", "user_id", user), mapping={time_field("profile"): stamp, **written})
    raw.hset(entity_key("shop", "user_id", "other"), mapping={time_field("another"): b""})
    present, stale, missing = both(server, FEAST, [(PROFILE, user) for user in ("ann", "old", "other")])
    assert plain(present) == plain(stale) == {
        "clicks": -7, "spent": 1.5, "member": True, "city": "größer", "brands": ["a", "", "ü"], "taste": [0.5, -2.0],
        "age": None,
    }  # fmt: skip
    assert [reading.status for reading in (present, stale, missing)] == [
        Status.PRESENT, Status.STALE, Status.MISSING,
    ]  # fmt: skip


def varint(number: int) -> bytes:
    return bytes([number & 0x7F | 0x80]) + varint(number >> 7) if number > 0x7F else bytes([number])


def test_integer_ids_of_feast(server: RedisServer, raw: Any) -> None:
    layout = FeastHashes("shop", "user_id", integer_ids=True)
    fields = {time_field("bare"): b"\x08\x01", field_name("bare", "clicks"): bytes.fromhex(GOLDEN["zero"]["raw"])}
    raw.hset(bytes.fromhex("0100000002000000070000") + b"\x00user_id" + bytes.fromhex("04000000080000002a") + bytes(7)
             + b"shop", mapping=fields)  # fmt: skip
    (reading,) = both(server, layout, [(BARE, "42")])
    assert (reading.values, reading.event_time) == ({"clicks": 0}, 1_000_000)
    for entity in ("ann", "1.5", "-", "--5", "9" * 19, "9" * 30):
        with pytest.raises(InputError, match="integer"):
            open_hashes(server.address, layout).read([(BARE, entity)])


def test_histories_are_not_read_from_hashes(server: RedisServer) -> None:
    history = View("recent", "user", (Field("item", Kind.STRING),), 1, "team", history=5)
    with pytest.raises(InputError, match="histories"):
        open_hashes(server.address, PLAIN).read([(history, "ann")])


def test_an_outage_and_a_deadline_are_answers(own_server: RedisServer) -> None:
    async def awaited() -> list[Reason]:
        reader = open_async_hashes(own_server.address, PLAIN, Timeouts(answer=timedelta(seconds=5)))
        await reader.read([(PROFILE, "ann")])
        own_server.pause()
        (late,) = await reader.read([(PROFILE, "ann")], deadline=0.05)
        own_server.go_on()
        await reader.close()
        return [late.reason]

    assert asyncio.run(awaited()) == [Reason.DEADLINE]
    reader = open_hashes(own_server.address, PLAIN, Timeouts(answer=timedelta(seconds=5)))
    reader.read([(PROFILE, "ann")])
    own_server.pause()
    reasons = [reader.read([(PROFILE, "ann")], deadline=0.05)[0].reason]
    own_server.go_on()
    own_server.kill()
    reasons.append(reader.read([(PROFILE, "ann"), (PROFILE, "bob")])[1].reason)
    reader.close()
    assert reasons == [Reason.DEADLINE, Reason.UNAVAILABLE]
