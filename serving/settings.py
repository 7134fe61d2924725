"""Settings of the server: environment variables with the prefix WINDFIRE_."""

from __future__ import annotations

import json
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from annotated_types import Ge, Le, MinLen
from pydantic import AfterValidator, BeforeValidator, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from feature_store.opening import LMDB, RedisAddress
from feature_store.store import CLOCK_SKEW
from recsys.backends import EngineName
from recsys.bundle.gate import EVERY_OTHER, TOLERANCE, Gate, Incomparable
from recsys.errors import ConfigError
from recsys.records import POSITIVE_ACTIONS

CATALOG_LOG: Final = "catalog_log"
"""Folder of the catalogue log in a registry, unless the settings name another."""

_MOST_SKEW: Final = timedelta(microseconds=CLOCK_SKEW)


class LogLevel(StrEnum):
    """The least severe line that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def _positive(value: timedelta) -> timedelta:
    if value <= timedelta(0):
        raise ValueError("must be longer than zero")
    return value


def _not_negative(value: timedelta) -> timedelta:
    if value < timedelta(0):
        raise ValueError("must not be negative")
    return value


def _server(value: str) -> str:
    if "@" in value:
        raise ValueError("must hold no user and no password")
    if value and not _is_server(value):
        raise ValueError("must be http://host:port or empty")
    return value


def _is_server(value: str) -> bool:
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:  # its words repeat the value, which may hold a secret
        return False
    plain = parts.scheme in ("http", "https") and not parts.query and not parts.fragment
    return plain and bool(parts.hostname)


def _from_json(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        raise ValueError('must be a JSON list such as ["click","cart"]') from None


def _table_from_json(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        raise ValueError('must be a JSON object such as {"valid.ndcg@10":0.02,"*":0.05}') from None


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value  # an empty path would be the current directory


def _store(value: SecretStr) -> SecretStr:
    address = value.get_secret_value()
    if address and not address.startswith(LMDB):
        try:
            RedisAddress.parse(address)
        except ConfigError:  # its words repeat the address
            raise ValueError("must be lmdb:DIRECTORY, redis://, redis+sentinel://, redis+cluster:// or empty") from None
    return value


def _in_step(value: timedelta) -> timedelta:
    if value > _MOST_SKEW:
        raise ValueError("must be at most five minutes: the feature store takes no later times")
    return value


_SECRET: Final = (("vllm_url",), ("history_store",))  # where somebody may have written a password or a token
Duration = Annotated[timedelta, AfterValidator(_positive)]
DurationOrZero = Annotated[timedelta, AfterValidator(_not_negative)]
DurationOrNone = Annotated[Duration | None, BeforeValidator(_none_if_empty)]
PathOrNone = Annotated[Path | None, BeforeValidator(_none_if_empty)]
ServerUrl = Annotated[str, AfterValidator(_server)]
# Decoded here, because the error of pydantic-settings would name neither the variable nor its value.
Actions = Annotated[tuple[str, ...], MinLen(1), NoDecode, BeforeValidator(_from_json)]
Tolerances = Annotated[dict[str, Annotated[float, Ge(0), Le(1)]], NoDecode, BeforeValidator(_table_from_json)]


class Settings(BaseSettings):
    """What an operator may change; config/windfire.reference.env explains each.

    Durations are ISO 8601 in the environment (PT0.2S). An unknown variable with the prefix is left alone, because
    other commands share it.
    """

    model_config = SettingsConfigDict(env_prefix="WINDFIRE_", frozen=True, extra="ignore", hide_input_in_errors=True)

    registry: Path = Path("work/registry")
    state: Path = Path("work/state")
    host: str = "127.0.0.1"
    port: Annotated[int, Ge(0), Le(65535)] = 8080
    keys_file: PathOrNone = None
    open: bool = False
    head_timeout: Duration = timedelta(seconds=10)
    body_timeout: Duration = timedelta(seconds=20)
    connection_limit: Annotated[int, Ge(1)] = 10_000
    workers: Annotated[int, Ge(1), Le(256)] = 1
    decoder: str = "auto"
    engine: EngineName = "auto"
    engine_socket: PathOrNone = None
    vllm_url: ServerUrl = ""
    vllm_timeout: Duration = timedelta(seconds=1)
    beam: Annotated[int, Ge(1), Le(4096)] = 50
    small_beam: Annotated[int, Ge(1), Le(4096)] = 16
    retrieval: bool = True
    search: bool = True
    torch_threads: Annotated[int, Ge(1)] = 1  # one thread had the best median and no contention between workers
    queue_limit: Annotated[int, Ge(1)] = 64
    deadline: Duration = timedelta(seconds=2)
    batch_limit: Annotated[int, Ge(1)] = 8
    engine_minimum: DurationOrZero = timedelta(milliseconds=5)
    engine_calls: Annotated[int, Ge(1)] = 256
    history_minimum: DurationOrZero = timedelta(milliseconds=1)
    fallback_reserve: DurationOrZero = timedelta(milliseconds=50)
    fallback_minimum: DurationOrZero = timedelta(milliseconds=2)
    request_limit: Annotated[int, Ge(1)] = 1_000
    breaker_failures: Annotated[int, Ge(1)] = 5
    breaker_pause: Duration = timedelta(milliseconds=500)
    cache_answers: Annotated[int, Ge(0)] = 10_000
    cache_age: Duration = timedelta(minutes=10)
    cache_fresh: DurationOrZero = timedelta(0)
    bundle_poll: Duration = timedelta(seconds=2)
    catalog_log: PathOrNone = None
    warmup_requests: Annotated[int, Ge(0), Le(1_000)] = 64
    warmup_time: Duration = timedelta(seconds=10)
    gate_tolerances: Tolerances = {EVERY_OTHER: TOLERANCE}
    gate_incomparable: Incomparable = "pass"
    reload_timeout: Duration = timedelta(seconds=60)
    cold_penalty: Annotated[float, Ge(0), Le(20)] = 0.0
    cold_lift: Annotated[float, Ge(0), Le(20)] = 0.0
    event_clock_skew: Annotated[DurationOrZero, AfterValidator(_in_step)] = timedelta(minutes=5)
    event_queue_limit: Annotated[int, Ge(1)] = 1_000
    exposure_flush: DurationOrZero = timedelta(milliseconds=200)
    exposure_sync: bool = False
    exposure_queue_limit: Annotated[int, Ge(1)] = 10_000
    history_store: Annotated[SecretStr, AfterValidator(_store)] = SecretStr("")
    history_deadline: Duration = timedelta(milliseconds=50)
    history_actions: Actions = tuple(str(action) for action in POSITIVE_ACTIONS)
    event_retention: DurationOrNone = None
    exposure_retention: DurationOrNone = None
    keep_alive: Duration = timedelta(seconds=5)
    ready_without_engine: bool = False
    drain_delay: DurationOrZero = timedelta(0)
    drain_timeout: Duration = timedelta(seconds=10)
    worker_silence: Duration = timedelta(seconds=30)
    log_level: LogLevel = LogLevel.INFO
    slow_request: Duration = timedelta(seconds=1)
    tracing: bool = False

    @property
    def catalog_directory(self) -> Path:
        """Of the catalogue log."""
        return self.catalog_log or self.registry / CATALOG_LOG

    @property
    def gate(self) -> Gate:
        """What a new bundle must keep to be served."""
        return Gate(self.gate_tolerances, self.gate_incomparable)


def read_settings(**given: Any) -> Settings:
    """Settings from the environment, under those that are given and not None.

    Raises:
        ConfigError: a value does not fit; names its variable.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = "_".join(("WINDFIRE", *(str(part) for part in first["loc"]))).upper()
        value = "(not shown)" if first["loc"][:1] in _SECRET else first["input"]
        raise ConfigError(first["msg"], field=name, value=value, remedy="see config/windfire.reference.env") from error
