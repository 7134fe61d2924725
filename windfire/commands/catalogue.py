"""`windfire catalogue`: the log of item changes, folded into bundles and trimmed."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from windfire.commands.publish import LOG

if TYPE_CHECKING:
    from recsys.bundle import Registry
    from recsys.catalog.log import CatalogLog

app = typer.Typer(no_args_is_help=True)
_Registry = Annotated[Path, typer.Option("--registry", help="Directory of published bundles.")]
_Log = Annotated[Path | None, typer.Option("--log", help="The catalogue log; REGISTRY/catalog_log.")]


@app.callback()
def group() -> None:
    """The log of item changes: what it holds, what bundles hold of it, what may go."""


@app.command()
def show(registry: _Registry, log: _Log = None) -> None:
    """Say where the log begins and ends, and where each version stands in it."""
    from recsys.bundle import BundleManifest
    from recsys.bundle.compaction import folded_of

    store, changes = _opened(registry, log)
    typer.echo(f"log {changes.directory}: records {changes.start:,} to {changes.end:,}")
    served = store.current()
    for version in store.versions():
        manifest = BundleManifest.load(store.path(version))
        kept = len(folded_of(store.path(version), manifest).records)
        mark = "*" if version == served else " "
        typer.echo(f"{mark} {version}  stands at {manifest.catalog_sequence:,}, with {kept:,} records folded in")


@app.command()
def compact(
    registry: _Registry,
    log: _Log = None,
    *,
    current: Annotated[bool, typer.Option(help="Serve the new version from now on.")] = True,
) -> None:
    """Publish the served version once more with the log folded in: the same model, the catalogue of now."""
    from recsys.bundle.compaction import compact as fold_in

    store, changes = _opened(registry, log)
    served = store.current()
    manifest = fold_in(store, changes, created=datetime.now(UTC), make_current=current)
    what = "nothing new in the log:" if manifest.version == served else "published"
    typer.echo(f"{what} {manifest.version} stands at {manifest.catalog_sequence:,}, serving {store.current()}")


@app.command()
def trim(registry: _Registry, log: _Log = None) -> None:
    """Remove the segments of the log that no version in the registry needs any more."""
    from recsys.bundle.compaction import trim as remove

    store, changes = _opened(registry, log)
    needed, gone = remove(store, changes)
    typer.echo(f"records from {needed:,} on are needed: {gone} segments removed, the log begins at {changes.start:,}")


def _opened(registry: Path, log: Path | None) -> tuple[Registry, CatalogLog]:
    from recsys.bundle import Registry
    from recsys.catalog.log import CatalogLog

    return Registry(registry), CatalogLog(log or registry / LOG)
