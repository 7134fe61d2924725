"""windfire publish."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from recsys.errors import ConfigError

if TYPE_CHECKING:
    from recsys.bundle import Registry

app = typer.Typer()
LOG: Final = "catalog_log"  # in the registry, where WINDFIRE_CATALOG_LOG does not say otherwise


@app.callback(invoke_without_command=True)
def command(
    registry: Annotated[Path, typer.Option(help="Directory of published bundles.")],
    run: Annotated[Path | None, typer.Option(help="What `windfire train recommender` wrote.")] = None,
    data: Annotated[Path | None, typer.Option(help="The work directory that the run was trained on.")] = None,
    *,
    current: Annotated[bool, typer.Option(help="Serve the new version from now on, if the gate lets it pass.")] = True,
    force: Annotated[str | None, typer.Option(help="Serve it although the gate refuses; why, for the record.")] = None,
    catalog_sequence: Annotated[int, typer.Option(min=0, help="Catalog log position of the work directory.")] = 0,
    fold: Annotated[
        bool, typer.Option("--fold", help="Fold the catalogue log into the bundle, so that workers need not replay it.")
    ] = False,
    catalog_log: Annotated[Path | None, typer.Option(help="The catalogue log; REGISTRY/catalog_log.")] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Serve the version that was served before.")] = False,
    to: Annotated[str | None, typer.Option(help="Serve this version; a newer one has to pass the gate.")] = None,
    show: Annotated[bool, typer.Option("--list", help="List the versions; * is the one served.")] = False,
) -> None:
    """Make a bundle of a trained model, its work directory and that one's indexes; put it into the registry."""
    if not (show or rollback or to) and (run is None or data is None):
        raise ConfigError(
            "nothing to publish", field="run", value=run, remedy="give --run and --data, or --list, or --rollback"
        )

    from recsys.bundle import Registry, publish_run
    from recsys.bundle.promotion import roll_back
    from recsys.catalog.log import CatalogLog

    store = Registry(registry)
    if show:
        _list(store)
    elif rollback or (to is not None and to <= (store.current() or "")):
        typer.echo(f"serving {roll_back(store, to)}")
    elif to is not None:
        _serve(store, to, force)
        typer.echo(f"serving {to}")
    elif run is not None and data is not None:
        known, log = set(store.versions()), CatalogLog(catalog_log or registry / LOG)
        if not fold and log.start > catalog_sequence:
            raise ConfigError(
                f"the catalogue log begins at {log.start}: workers could not replay it from there",
                field="catalog_sequence",
                value=catalog_sequence,
                remedy="publish with --fold",
            )
        manifest = publish_run(
            store,
            run=run,
            work=data,
            created=datetime.now(UTC),
            catalog_sequence=catalog_sequence,
            log=log if fold else None,
            make_current=False,
        )
        size = sum(entry.bytes for entry in manifest.files.values()) / 1e6
        what = "unchanged: this content is published as" if manifest.version in known else "published"
        typer.echo(f"{what} {manifest.version}: {manifest.items:,} items, {size:.1f} MB")
        if current:
            _serve(store, manifest.version, force)
        typer.echo(f"serving {store.current()}")


def _serve(store: Registry, version: str, force: str | None) -> None:
    """Through the gate; says what it said."""
    from recsys.bundle.promotion import promote
    from serving.settings import read_settings

    verdict = promote(store, version, read_settings().gate, reason=force)
    typer.echo(f"gate: {'passed' if verdict.passed else 'forced'}: {verdict}")


def _list(store: Registry) -> None:
    from recsys.bundle import BundleManifest

    served = store.current()
    for version in store.versions():
        manifest = BundleManifest.load(store.path(version))
        metrics = " ".join(f"{name}={value:.4f}" for name, value in sorted(manifest.metrics.items()))
        typer.echo(f"{'*' if version == served else ' '} {version}  {manifest.items:,} items  {metrics}")
