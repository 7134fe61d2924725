"""windfire keys: who may ask the server."""

from __future__ import annotations

import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recsys.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from serving.security.keys import StoredKey

app = typer.Typer(no_args_is_help=True)
File = Annotated[Path | None, typer.Option("--file", help="The key file. Default: WINDFIRE_KEYS_FILE.")]
_DAY = 86_400_000_000


@app.callback()
def group() -> None:
    """API keys: create, revoke, list. A running server sees a change within a second."""


@app.command()
def create(
    name: Annotated[str, typer.Option(help="Who gets it, for people; at most 100 characters.")],
    scope: Annotated[list[str], typer.Option(help="recommend, events, metrics or admin; repeatable.")],
    days: Annotated[float | None, typer.Option(min=0.0, help="Days after which it expires. Default: never.")] = None,
    rate: Annotated[float | None, typer.Option(help="Requests per second in the long run. Default: no limit.")] = None,
    burst: Annotated[
        int | None, typer.Option(min=1, help="Requests that may come at once. Default: one second's.")
    ] = None,
    file: File = None,
) -> None:
    """Make a key and show it, this once; only a hash of it is kept."""
    from serving.security.keys import LEAST_RATE, Scope, new_key

    try:
        scopes = tuple(Scope(one) for one in scope)
    except ValueError:
        raise ConfigError("no such scope", field="scope", value=scope,
                          remedy=f"take some of {', '.join(Scope)}") from None  # fmt: skip
    if (rate is not None and not rate >= LEAST_RATE) or not 0 < len(name) <= 100:
        raise ConfigError(
            f"a rate is {LEAST_RATE:g} or more, a name has 1 to 100 characters", field="name", value=name, remedy=""
        )
    expires = None if days is None else time.time_ns() // 1_000 + round(days * _DAY)
    held = burst if burst is not None else max(1, round(rate or 1))
    with _changing(_path(file)) as keys:
        stored, key = new_key(name, scopes, expires=expires, rate=rate, burst=held)
        keys.append(stored)
    typer.echo(key)
    typer.echo(f"id {stored.id}: keep the line above now, it is not shown again", err=True)


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(help="As `list` shows it.")], file: File = None) -> None:
    """Take a key back."""
    from serving.security.keys import find_key

    with _changing(_path(file)) as keys:
        keys.remove(find_key(keys, key_id))


@app.command("list")
def list_keys(file: File = None) -> None:
    """Show the keys: id, name, scopes, times, limits; never a secret."""
    from rich.console import Console
    from rich.table import Table

    from serving.security.keys import read_keys

    table = Table("id", "name", "scopes", "created", "expires", "rate", "burst")
    for key in read_keys(_path(file)):
        rate, burst = ("-", "-") if key.rate is None else (f"{key.rate:g}/s", str(key.burst))
        table.add_row(key.id, key.name, " ".join(key.scopes), _day(key.created), _day(key.expires), rate, burst)
    Console(width=160).print(table)


def _day(micros: int | None) -> str:
    return "-" if micros is None else datetime.fromtimestamp(micros / 1e6, UTC).strftime("%Y-%m-%d %H:%M")


def _path(given: Path | None) -> Path:
    from serving.settings import read_settings

    path = given or read_settings().keys_file
    if path is None:
        raise ConfigError("no key file was named", field="WINDFIRE_KEYS_FILE", value="",
                          remedy="give --file, or set the variable")  # fmt: skip
    return path


@contextmanager
def _changing(path: Path) -> Iterator[list[StoredKey]]:
    """The keys of a file, to be changed; written back when the block ends. One at a time."""
    from recsys.storage import write_bytes_atomically
    from serving.security.keys import encode_keys, locked, read_keys

    with locked(path):
        keys = read_keys(path) if path.exists() else []
        yield keys
        write_bytes_atomically(path, encode_keys(keys), mode=0o600)
