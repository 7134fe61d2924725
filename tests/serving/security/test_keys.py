from __future__ import annotations

import base64
import hashlib
import hmac
import os
import stat
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from recsys.errors import ConfigError, InputError
from serving.security.keys import Holder, KeyRing, Refusal, Scope, StoredKey, encode_keys, new_key, read_keys
from windfire.commands.keys import app


def bearer(key: str) -> bytes:
    return b"Bearer " + key.encode()


def ring_of(path: Path, *keys: StoredKey) -> KeyRing:
    path.write_bytes(encode_keys(list(keys)))
    path.chmod(0o600)
    return KeyRing(path)


def run(*arguments: str) -> tuple[str, str]:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout, result.stderr


def test_a_key_is_taken_and_nothing_near_it(tmp_path: Path) -> None:
    stored, key = new_key("shop", (Scope.EVENTS,))
    ring = ring_of(tmp_path / "keys", stored)
    holder = ring.holder(bearer(key))
    assert isinstance(holder, Holder)
    assert (holder.id, holder.scopes, holder.bucket) == (stored.id, frozenset({Scope.EVENTS}), None)
    assert ring.holder(b"bearer   " + key.encode()) == holder
    swapped = key[:-2] + {"AA": "BB"}.get(key[-2:], "AA")
    _, other = new_key("other", (Scope.EVENTS,))
    mixed = key[:20] + other[20:]
    for wrong in (swapped, other, mixed, key + "A", key[:-1], key.upper(), f"{key}\n", f"x{key}", ""):
        assert ring.holder(bearer(wrong)) is Refusal.UNKNOWN
    for header in (None, b"", key.encode(), b"Basic " + base64.b64encode(key.encode()), b"Bearer" + key.encode()):
        assert ring.holder(header) is Refusal.ABSENT


@given(header=st.binary(max_size=100) | st.binary(max_size=100).map(lambda data: b"Bearer wf_" + data))
def test_no_bytes_are_a_fault(tmp_path_factory: pytest.TempPathFactory, header: bytes) -> None:
    stored, _ = new_key("shop", (Scope.EVENTS,))
    ring = ring_of(tmp_path_factory.mktemp("ring") / "keys", stored)
    assert ring.holder(header) in {Refusal.ABSENT, Refusal.UNKNOWN}


def test_a_key_expires_by_the_clock(tmp_path: Path) -> None:
    stored, key = new_key("shop", (Scope.EVENTS,), expires=1_000)
    path = tmp_path / "keys"
    ring_of(path, stored)
    now = 999
    ring = KeyRing(path, clock=lambda: now)
    assert isinstance(ring.holder(bearer(key)), Holder)
    now = 1_000
    assert ring.holder(bearer(key)) is Refusal.EXPIRED
    assert ring.holder(bearer(key[:-2] + "__")) is Refusal.UNKNOWN  # who has no key learns nothing of its time


def test_unknown_ids_and_wrong_secrets_are_compared_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    compare = hmac.compare_digest

    def noted(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    stored, key = new_key("shop", (Scope.EVENTS,))
    ring = ring_of(tmp_path / "keys", stored)
    for shown in (key, key[:-2] + "__", new_key("other", (Scope.EVENTS,))[1]):
        ring.holder(bearer(shown))
    assert compared == [(32, 32)] * 3


def test_the_file_holds_a_salted_hash_and_no_secret(tmp_path: Path) -> None:
    stored, key = new_key("shop", (Scope.EVENTS,))
    secret = key.split("_", 2)[2]
    text = encode_keys([stored]).decode()
    assert secret not in text
    assert len(base64.urlsafe_b64decode(secret + "=")) == 32
    expected = hashlib.sha256(b"windfire key 1\0" + stored.id.encode() + b"\0" + secret.encode()).hexdigest()
    assert stored.hash == expected
    assert len({new_key("x", (Scope.ADMIN,))[1] for _ in range(1_000)}) == 1_000


def key_rows(**changes: Any) -> bytes:
    stored, _ = new_key("shop", (Scope.EVENTS,))
    return msgspec.json.encode({"format": 1, "keys": [{**msgspec.to_builtins(stored), **changes}]})


def twice() -> bytes:
    stored, _ = new_key("shop", (Scope.EVENTS,))
    return encode_keys([stored, stored])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"format": 2, "keys": []}',
        key_rows(id="short"),
        key_rows(hash="0" * 63),
        key_rows(scopes=[]),
        key_rows(scopes=["root"]),
        key_rows(rate=0),
        key_rows(rate=-1),
        key_rows(burst=0),
        key_rows(expires="soon"),
        key_rows(secret="x"),
        twice(),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "keys"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="key file"):
        read_keys(path)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    stored, _ = new_key("shop", (Scope.EVENTS,))
    ring_of(tmp_path / "keys", stored)
    (tmp_path / "keys").chmod(mode)
    with pytest.raises(ConfigError, match="others than its owner"):
        read_keys(tmp_path / "keys")


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        KeyRing(tmp_path / "keys")


def test_the_ring_follows_the_file_and_keeps_its_keys_where_it_cannot(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    first, key = new_key("first", (Scope.EVENTS,), rate=0.001, burst=1)
    ring = ring_of(path, first)
    assert not ring.refresh()
    holder = ring.holder(bearer(key))
    assert isinstance(holder, Holder)
    assert holder.bucket is not None
    assert holder.bucket.take() == 0.0
    second, other = new_key("second", (Scope.ADMIN,))
    ring_of(path, first, second)
    assert ring.refresh()
    assert isinstance(ring.holder(bearer(other)), Holder)
    again = ring.holder(bearer(key))
    assert isinstance(again, Holder)
    assert again.bucket is holder.bucket  # a change of the file is no new burst
    path.write_bytes(b"{")
    assert not ring.refresh()
    assert "key file" in (ring.trouble or "")
    assert isinstance(ring.holder(bearer(key)), Holder)
    path.unlink()
    assert not ring.refresh()
    assert ring_of(path, second).trouble is None
    assert ring.refresh()
    assert ring.holder(bearer(key)) is Refusal.UNKNOWN
    assert len(ring) == 1


def test_a_new_limit_is_a_new_bucket(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    stored, key = new_key("first", (Scope.EVENTS,), rate=1.0, burst=1)
    ring = ring_of(path, stored)
    before = ring.holder(bearer(key))
    ring_of(path, msgspec.structs.replace(stored, burst=7))
    assert ring.refresh()
    after = ring.holder(bearer(key))
    assert isinstance(before, Holder)
    assert isinstance(after, Holder)
    assert after.bucket is not before.bucket


def test_the_command_creates_lists_and_revokes(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "keys.json"
    file = ["--file", str(path)]
    out, told = run("create", "--name", "shop", "--scope", "recommend", "--scope", "events", "--days", "2",
                    "--rate", "50", *file)  # fmt: skip
    key = out.strip()
    (stored,) = read_keys(path)
    assert stored.id in told
    assert key not in told
    assert (stored.scopes, stored.rate, stored.burst) == ((Scope.RECOMMEND, Scope.EVENTS), 50.0, 50)
    assert stored.expires is not None
    assert abs(stored.expires - time.time_ns() // 1_000 - 2 * 86_400_000_000) < 600_000_000
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert isinstance(KeyRing(path).holder(bearer(key)), Holder)
    run("create", "--name", "ops", "--scope", "admin", *file)
    listed, _ = run("list", *file)
    assert {"shop", "ops"} <= set(listed.split())
    assert key.split("_", 2)[2] not in listed
    assert stored.hash not in listed
    run("revoke", stored.id, *file)
    assert [one.name for one in read_keys(path)] == ["ops"]
    assert KeyRing(path).holder(bearer(key)) is Refusal.UNKNOWN
    assert sorted(name for name in os.listdir(path.parent)) == ["keys.json", "keys.json.lock"]  # noqa: PTH208


@pytest.mark.parametrize(
    "options",
    [
        ["--name", "x", "--scope", "root"],
        ["--name", "x", "--scope", "admin", "--rate", "0"],
        ["--name", "x", "--scope", "admin", "--rate", "nan"],
        ["--name", "", "--scope", "admin"],
    ],
)
def test_the_command_refuses_what_makes_no_key(tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(ConfigError):
        CliRunner().invoke(app, ["create", *options, "--file", str(tmp_path / "keys")], catch_exceptions=False)
    assert not (tmp_path / "keys").exists()


def test_revoking_what_is_not_there_changes_nothing(tmp_path: Path) -> None:
    run("create", "--name", "ops", "--scope", "admin", "--file", str(tmp_path / "keys"))
    before = (tmp_path / "keys").read_bytes()
    with pytest.raises(InputError, match="no key has this id"):
        CliRunner().invoke(app, ["revoke", "0" * 16, "--file", str(tmp_path / "keys")], catch_exceptions=False)
    assert (tmp_path / "keys").read_bytes() == before


def test_without_a_file_the_command_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WINDFIRE_KEYS_FILE", raising=False)
    with pytest.raises(ConfigError, match="WINDFIRE_KEYS_FILE"):
        CliRunner().invoke(app, ["list"], catch_exceptions=False)
