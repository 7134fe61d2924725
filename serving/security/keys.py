"""API keys: what is kept of them, the file that they stand in, and the ring that a server asks.

A key is `wf_<id>_<secret>`: a public id of 64 bits, under which it is looked up, and a secret of 256 random bits, of
which only a salted hash is kept. One fast hash is right here: what nobody can guess needs no slow one.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import time
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta

from recsys.errors import ConfigError, InputError
from serving.security.token_bucket import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from serving.settings import Settings

LEAST_RATE: Final = 0.001
"""Requests per second of the slowest key: one in a quarter of an hour."""

_FORMAT: Final = 1
_ID_BYTES: Final = 8
_SECRET_BYTES: Final = 32
# Base64url of 32 bytes has 43 characters.
_KEY: Final = re.compile(rb"wf_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_NOBODY: Final = b"\0" * 32  # what an unknown id is compared with, so that it takes as long as a known one


class Scope(StrEnum):
    """What a key may do; none contains another."""

    RECOMMEND = "recommend"
    EVENTS = "events"
    METRICS = "metrics"
    ADMIN = "admin"


class StoredKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key as it stands in the file.

    Attributes:
        id: 16 hexadecimal digits, public.
        name: who has it, for people.
        hash: of the secret, see `hash_secret`.
        scopes: what it may do.
        created: UTC microseconds.
        expires: UTC microseconds from which on it is refused; None: never.
        rate: requests per second in the long run; None: no limit.
        burst: requests that may come at once.
    """

    id: Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
    name: Annotated[str, Meta(min_length=1, max_length=100)]
    hash: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)]
    created: Annotated[int, Meta(ge=0)]
    expires: Annotated[int, Meta(ge=0)] | None = None
    rate: Annotated[float, Meta(ge=LEAST_RATE)] | None = None
    burst: Annotated[int, Meta(ge=1)] = 1


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    keys: list[StoredKey]


class Refusal(StrEnum):
    """Why a key is not taken."""

    ABSENT = "absent"
    UNKNOWN = "unknown"
    EXPIRED = "expired"


def hash_secret(key_id: str, secret: bytes) -> bytes:
    """SHA-256 of a secret, salted with its key's id; 32 bytes."""
    return hashlib.sha256(b"windfire key 1\0" + key_id.encode() + b"\0" + secret).digest()


def new_key(
    name: str, scopes: tuple[Scope, ...], *, expires: int | None = None, rate: float | None = None, burst: int = 1
) -> tuple[StoredKey, str]:
    """Draw a key.

    Returns:
        What is kept, and the key itself, which nobody can make out again.
    """
    key_id, secret = secrets.token_hex(_ID_BYTES), secrets.token_urlsafe(_SECRET_BYTES)
    stored = StoredKey(
        id=key_id,
        name=name,
        hash=hash_secret(key_id, secret.encode()).hex(),
        scopes=tuple(dict.fromkeys(scopes)),
        created=time.time_ns() // 1_000,
        expires=expires,
        rate=rate,
        burst=burst,
    )
    return msgspec.convert(msgspec.to_builtins(stored), StoredKey), f"wf_{key_id}_{secret}"


def encode_keys(keys: list[StoredKey]) -> bytes:
    """The file of these keys."""
    return msgspec.json.format(msgspec.json.encode(_File(_FORMAT, keys)), indent=2) + b"\n"


def read_keys(path: Path) -> list[StoredKey]:
    """Read the file.

    Raises:
        ConfigError: it is absent, cannot be read, is not of this form, or others than its owner may write it.
    """
    remedy = "make keys with `windfire keys create`"
    try:
        mode, data = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the key file cannot be read: {error.strerror}", field="keys_file", value=str(path),
                          remedy=f"{remedy}, as the user that serves") from None  # fmt: skip
    if mode & 0o022:
        raise ConfigError("others than its owner may write the key file", field="keys_file", value=str(path),
                          remedy="chmod 600")  # fmt: skip
    try:
        found = msgspec.json.decode(data, type=_File)
    except msgspec.MsgspecError as error:  # names the place, never a value
        raise ConfigError(f"this is no key file: {error}", field="keys_file", value=str(path), remedy=remedy) from None
    if found.format != _FORMAT or len({key.id for key in found.keys}) < len(found.keys):
        raise ConfigError("a key file of another format, or an id twice", field="keys_file", value=str(path),
                          remedy=remedy)  # fmt: skip
    return found.keys


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only one who changes a key file, until the block ends; the lock dies with its process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


class Holder(NamedTuple):
    """A key that a server takes.

    Attributes:
        id: public.
        hash: of its secret.
        scopes: what it may do.
        expires: UTC microseconds; None: never.
        bucket: of its requests; None: no limit.
    """

    id: str
    hash: bytes
    scopes: frozenset[Scope]
    expires: int | None
    bucket: TokenBucket | None


class KeyRing:
    """The keys of one file, as they were when it was last looked at.

    A file that has become unreadable changes nothing: the keys before it stay, and `trouble` says why.

    Args:
        path: of the file.
        clock: now, in UTC microseconds.

    Attributes:
        trouble: why the file could not be read again; None where all is well.

    Raises:
        ConfigError: see `read_keys`.
    """

    def __init__(self, path: Path, clock: Callable[[], int] = lambda: time.time_ns() // 1_000) -> None:
        self._path = path
        self._clock = clock
        self._seen: tuple[int, int, int] | None = None
        self._holders: Mapping[bytes, Holder] = {}
        self._rates: dict[str, tuple[float | None, int]] = {}
        self.trouble: str | None = None
        self._load()

    def __len__(self) -> int:
        return len(self._holders)

    def holder(self, header: bytes | None) -> Holder | Refusal:
        """Whose key an Authorization header shows.

        It takes as long for an unknown id as for a wrong secret.
        """
        scheme, _, key = (header or b"").partition(b" ")
        if scheme.lower() != b"bearer":
            return Refusal.ABSENT
        parts = _KEY.fullmatch(key.strip(b" "))
        if parts is None:
            return Refusal.UNKNOWN
        key_id, secret = parts.groups()
        holder = self._holders.get(key_id)
        kept = _NOBODY if holder is None else holder.hash
        fits = hmac.compare_digest(hash_secret(key_id.decode(), secret), kept)
        if holder is None or not fits:
            return Refusal.UNKNOWN
        if holder.expires is not None and self._clock() >= holder.expires:
            return Refusal.EXPIRED
        return holder

    def refresh(self) -> bool:
        """Read the file again where it is another one than before; says whether the keys are new ones. Never raises."""
        try:
            if self._mark() == self._seen:
                return False
            self._load()
        except (ConfigError, OSError) as error:
            self.trouble = str(error)
            return False
        self.trouble = None
        return True

    def _mark(self) -> tuple[int, int, int]:
        found = self._path.stat()
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _load(self) -> None:
        """Take the file's keys; one whose limit is as before keeps its bucket."""
        mark = self._mark() if self._path.exists() else None  # before reading: a change in between is seen next time
        keys = read_keys(self._path)
        rates = {key.id: (key.rate, key.burst) for key in keys}
        holders = {}
        for key in keys:
            before = self._holders.get(key.id.encode())
            bucket = None if key.rate is None else TokenBucket(key.rate, key.burst)
            if before is not None and self._rates.get(key.id) == rates[key.id]:
                bucket = before.bucket
            holders[key.id.encode()] = Holder(
                key.id, bytes.fromhex(key.hash), frozenset(key.scopes), key.expires, bucket
            )
        self._holders, self._rates, self._seen = holders, rates, mark  # one assignment each: readers see old or new


def find_key(keys: list[StoredKey], key_id: str) -> StoredKey:
    """The key of an id.

    Raises:
        InputError: there is none.
    """
    for key in keys:
        if key.id == key_id:  # ids are public
            return key
    raise InputError("no key has this id", field="id", value=key_id, remedy="`windfire keys list` shows the ids")


def open_ring(settings: Settings) -> KeyRing | None:
    """The keys that the settings name; None for a server that is open to everybody who reaches it.

    Raises:
        ConfigError: the key file cannot be read; or there is none, other machines can reach the server, and nobody said
            that this is wanted.
    """
    if settings.keys_file is not None:
        return KeyRing(settings.keys_file)
    if not settings.open and not _is_loopback(settings.host):
        raise ConfigError(
            "a server without keys listens on this machine only",
            field="WINDFIRE_HOST",
            value=settings.host,
            remedy="set WINDFIRE_KEYS_FILE, or WINDFIRE_OPEN=true where something in front asks who is there",
        )
    return None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
