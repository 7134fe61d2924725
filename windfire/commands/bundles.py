"""windfire bundles."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recsys.errors import ConfigError, InputError

if TYPE_CHECKING:
    from recsys.bundle.pointers import Share
    from recsys.bundle.registry import Registry

app = typer.Typer(no_args_is_help=True)
RegistryPath = Annotated[Path, typer.Option(help="Directory of published bundles.")]
VersionOrNone = Annotated[str | None, typer.Option(help="A version of the registry.")]
ShareOf = Annotated[float, typer.Option(help="Above 0, at most 1.")]
Salt = Annotated[str | None, typer.Option(help="Another one draws others; default: at random.")]
Off = Annotated[bool, typer.Option("--off", help="End it.")]
States = Annotated[
    list[Path], typer.Option(help="State directory of a server or an engine; several times for several.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of the table.")]


@app.command()
def status(registry: RegistryPath) -> None:
    """Say what is served, what runs beside it, and who runs what."""
    from recsys.bundle.pointers import CANARY, SHADOW, read_share
    from recsys.bundle.registry import Registry
    from serving.lifecycle.workers import live_workers

    store = Registry(registry)
    typer.echo(f"CURRENT {store.current()}")
    for pointer in (CANARY, SHADOW):
        typer.echo(f"{pointer} {_named(read_share(store, pointer))}")
    for worker in live_workers(registry):
        refused = f" refuses {worker.refused_version}: {worker.refused}" if worker.refused else ""
        beside = f" canary {worker.canary} shadow {worker.shadow}"
        typer.echo(f"worker {worker.name} runs {worker.bundle}{beside}{refused}")


@app.command()
def moves(registry: RegistryPath) -> None:
    """Show every move of CURRENT with what the gate said and the reasons given, one JSON object a line."""
    from recsys.bundle import promotion
    from recsys.bundle.registry import Registry

    for move in promotion.moves(Registry(registry)):
        typer.echo(json.dumps(move, ensure_ascii=False))


@app.command()
def canary(
    registry: RegistryPath, version: VersionOrNone = None, share: ShareOf = 0.05, salt: Salt = None, *, off: Off = False
) -> None:
    """Let a version answer a share of the users."""
    from recsys.bundle.pointers import CANARY

    _point(registry, CANARY, version, share, salt, off=off)


@app.command()
def shadow(
    registry: RegistryPath, version: VersionOrNone = None, share: ShareOf = 1.0, salt: Salt = None, *, off: Off = False
) -> None:
    """Let a version answer a share of the requests unseen, to be compared."""
    from recsys.bundle.pointers import SHADOW

    _point(registry, SHADOW, version, share, salt, off=off)


@app.command()
def promote(
    registry: RegistryPath,
    version: VersionOrNone = None,
    force: Annotated[str | None, typer.Option(help="Serve it although the gate refuses; why, for the record.")] = None,
) -> None:
    """Serve a version (default: the canary) to everybody, if the quality gate lets it pass."""
    from recsys.bundle import promotion
    from recsys.bundle.pointers import CANARY, read_share
    from recsys.bundle.registry import Registry
    from serving.settings import read_settings

    store = Registry(registry)
    share = read_share(store, CANARY)
    chosen = version or (None if share is None else share.version)
    if chosen is None:
        raise ConfigError("there is no canary to promote", field="version", value=None, remedy="give --version")
    verdict = promotion.promote(store, chosen, read_settings().gate, reason=force)
    typer.echo(f"gate: {'passed' if verdict.passed else 'forced'}: {verdict}")
    typer.echo(f"serving {chosen}")


@app.command()
def rollback(registry: RegistryPath, version: VersionOrNone = None) -> None:
    """End the canary, and serve an earlier version where there is none or one is named."""
    from recsys.bundle import promotion
    from recsys.bundle.pointers import CANARY, clear_share
    from recsys.bundle.registry import Registry

    store = Registry(registry)
    ended = clear_share(store, CANARY)
    if ended is not None:
        typer.echo(f"canary {ended.version} ended")
    if ended is None or version is not None:
        promotion.roll_back(store, version)
    typer.echo(f"serving {store.current()}")


@app.command("shadow-report")
def shadow_report(
    state: States,
    version: Annotated[str | None, typer.Option(help="Of the shadow; default: the newest that answered.")] = None,
    hours: Annotated[float, typer.Option(min=0.01, help="Events so long after a request count.")] = 24.0,
    *,
    as_json: AsJson = False,
) -> None:
    """Compare what the shadow answered with what was shown."""
    from windfire.shadow_report import report_shadow

    _show(report_shadow(state, version=version, horizon=round(hours * 3_600_000_000)), as_json=as_json)


@app.command("canary-report")
def canary_report(
    state: States,
    version: Annotated[str | None, typer.Option(help="Of the canary; default: the newest that answered.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Compare the arms of a canary: answers, clicks per answer with intervals, failures."""
    from windfire.canary_report import report_canary

    _show(report_canary(state, version=version), as_json=as_json)


def _point(registry: Path, pointer: str, version: str | None, share: float, salt: str | None, *, off: bool) -> None:
    from recsys.bundle.pointers import Share, clear_share, write_share
    from recsys.bundle.registry import Registry

    store: Registry = Registry(registry)
    if off:
        typer.echo(f"{pointer} was {_named(clear_share(store, pointer))}")
        return
    if version is None:
        raise InputError("no version was named", field="version", value=None, remedy="give --version, or --off")
    wanted = Share(version, share, secrets.token_hex(4) if salt is None else salt)
    write_share(store, pointer, wanted)
    typer.echo(f"{pointer} {_named(wanted)}")


def _named(share: Share | None) -> str:
    return "none" if share is None else f"{share.version} share {share.share:g} salt {share.salt}"


def _show(report: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    columns: dict[str, dict[str, Any]] = report.pop("columns")
    table = Table("", *columns, title=" ".join(f"{name} {value}" for name, value in report.items()), box=None)
    for row in dict.fromkeys(name for column in columns.values() for name in column):
        table.add_row(row, *(_cell(column.get(row)) for column in columns.values()))
    Console().print(table)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(_cell(each) for each in value)
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
