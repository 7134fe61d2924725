"""`windfire features`: the feature store by hand."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta

    from feature_store.fields import Field
    from feature_store.reading import Reading
    from feature_store.settings import FeatureSettings
    from feature_store.store import FeatureStore
    from feature_store.views import View, Views

app = typer.Typer(no_args_is_help=True)
_SHOWN = 5

Store = Annotated[
    str | None, typer.Option("--store", help="lmdb:DIRECTORY or a redis address. Default: WINDFIRE_FEATURES_STORE.")
]
Declared = Annotated[
    str | None, typer.Option("--views", help="Module that declares VIEWS. Default: WINDFIRE_FEATURES_VIEWS.")
]
Table = Annotated[Path, typer.Option(help="Parquet file or directory; docs/feature_store.md has the columns.")]
Columns = Annotated[
    list[str] | None, typer.Option("--column", help="COLUMN=NAME where the table has another name; repeatable.")
]
Sample = Annotated[int, typer.Option(min=1, help="Entities to look at.")]
MetricsFile = Annotated[
    Path | None, typer.Option("--metrics", help="Also write a file for Prometheus's node exporter, NAME.prom.")
]
Seed = Annotated[int, typer.Option(help="Of the sample.")]
ViewName = Annotated[str, typer.Argument(help="name or name:version")]


@app.callback()
def group() -> None:
    """Online features: what is declared, what the store holds, and whether it is right."""


@app.command("list")
def list_views(views: Declared = None) -> None:
    """Show the declared views."""
    from rich.console import Console
    from rich.table import Table as RichTable

    from feature_store.settings import read_feature_settings
    from feature_store.views import load_views

    table = RichTable("view", "entity", "fields", "stale after", "kept for", "history", "owner", "what")
    for view in load_views(read_feature_settings(views=views).views).values():
        fields = ", ".join(_field(field) for field in view.fields)
        keep = None if view.ttl is None else view.keep or 2 * view.ttl
        table.add_row(view.label, view.entity, fields, _age(view.ttl), _age(keep), str(view.history or "-"),
                      view.owner, view.description)  # fmt: skip
    Console(width=160).print(table)


@app.command("get")
def get(
    entity: Annotated[str, typer.Argument(help="Id of a user, an item, ...")],
    view: Annotated[list[str] | None, typer.Option(help="name or name:version; repeatable. Default: all.")] = None,
    store: Store = None,
    views: Declared = None,
) -> None:
    """Show what the store holds of one entity, a JSON line per view."""
    with _opened(store, views) as (declared, opened):
        chosen = [declared[name] for name in view or declared]
        for one, reading in zip(chosen, opened.read([(one, entity) for one in chosen]), strict=True):
            typer.echo(json.dumps({"view": one.label, "entity": entity, **_shown(one, reading)}, ensure_ascii=False))


@app.command("delete")
def delete(
    entity: Annotated[str, typer.Argument(help="Id of a user, an item, ...")],
    view: Annotated[list[str] | None, typer.Option(help="name or name:version; repeatable. Default: all.")] = None,
    store: Store = None,
    views: Declared = None,
) -> None:
    """Forget all that the store holds of one entity up to now; late writes of older events do not bring it back."""
    from feature_store.store import delete_entity, now_micros

    with _opened(store, views) as (declared, opened):
        chosen = [declared[name] for name in view or declared]
        delete_entity(opened, chosen, entity, now_micros())
    typer.echo(f"{entity}: {', '.join(one.label for one in chosen)} deleted")


@app.command("materialize")
def materialize(
    view: ViewName, table: Table, column: Columns = None, store: Store = None, views: Declared = None,
    master: Annotated[str | None, typer.Option(help="Spark master that does it. Default: this process.")] = None,
) -> None:  # fmt: skip
    """Bring a table into the store; running it again, or in any order, changes nothing."""
    from feature_store.settings import read_feature_settings
    from feature_store.views import load_views

    settings = read_feature_settings(store=store, views=views)
    one = load_views(settings.views)[view]
    rows = (
        _here(one, table, _columns(column), settings)
        if master is None
        else _on_spark(one, table, _columns(column), settings, master)
    )
    typer.echo(f"{one.label}: {rows:,} rows")


def _here(view: View, table: Path, columns: dict[str, str], settings: FeatureSettings) -> int:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from feature_store.opening import open_store
    from feature_store.tables import materialize as bring
    from feature_store.tables import read_table

    shown = (SpinnerColumn(), TextColumn("{task.description}: {task.completed:,} rows"), TimeElapsedColumn())
    store = open_store(settings.store, settings.timeouts)
    try:
        with Progress(*shown, console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task(view.label, total=None)
            tables = read_table(view, table, columns=columns)
            return bring(store, view, tables, advance=lambda count: bars.advance(task, count))
    finally:
        store.close()


def _on_spark(view: View, table: Path, columns: dict[str, str], settings: FeatureSettings, master: str) -> int:
    from feature_store.tables import read_table
    from offline.materialize import materialize_frame
    from offline.session import LazySession

    next(read_table(view, table, columns=columns, batch_rows=1), None)  # what is wrong with the columns is said at once
    with LazySession(master) as session:
        frame = session.get().read.parquet(str(table.resolve()))
        return materialize_frame(view, frame, settings.store, timeouts=settings.timeouts, columns=columns)


@app.command("freshness")
def freshness(
    view: ViewName, table: Table, column: Columns = None, sample: Sample = 1_000, seed: Seed = 1, store: Store = None,
    views: Declared = None, metrics: MetricsFile = None,
) -> None:  # fmt: skip
    """Count statuses and ages in the store, of entities drawn from a table."""
    import numpy as np

    from feature_store.store import now_micros
    from feature_store.tables import read_table
    from feature_store.verification import freshness as measure
    from feature_store.verification import sample_entities
    from windfire.feature_metrics import write_freshness

    with _opened(store, views) as (declared, opened):
        one = declared[view]
        tables = read_table(one, table, columns=_columns(column))
        entities = sample_entities(tables, sample, np.random.default_rng(seed))
        found = measure(opened, one, entities, now_micros())
    if metrics is not None:
        write_freshness(metrics, one, found)
    for status, count in sorted(found.statuses.items()):
        typer.echo(f"{one.label} {status}: {count}")
    for percentile, seconds in found.seconds.items():
        typer.echo(f"{one.label} age p{percentile}: {seconds:,.1f} s")


@app.command("verify")
def verify(
    view: ViewName, table: Table, column: Columns = None, sample: Sample = 1_000, seed: Seed = 1, store: Store = None,
    views: Declared = None, metrics: MetricsFile = None,
) -> None:  # fmt: skip
    """Compare store and table for a sample of entities; status 1 where they differ."""
    import numpy as np

    from feature_store.store import now_micros
    from feature_store.tables import read_table
    from feature_store.verification import sample_entities
    from feature_store.verification import verify as compare
    from windfire.feature_metrics import write_skew

    with _opened(store, views) as (declared, opened):
        one, renamed = declared[view], _columns(column)
        entities = sample_entities(read_table(one, table, columns=renamed), sample, np.random.default_rng(seed))
        found = compare(opened, one, lambda: read_table(one, table, columns=renamed), entities, now_micros())
    if metrics is not None:
        write_skew(metrics, one, found)
    for difference in found.differences[:_SHOWN]:
        for side, reading in (("online", difference.online), ("offline", difference.offline)):
            shown = json.dumps(_shown(one, reading), ensure_ascii=False)
            typer.echo(f"{difference.entity} {side}: {shown}")
    typer.echo(f"{one.label}: {len(found.differences)} of {found.compared} differ ({found.skew:.4f})")
    raise typer.Exit(1 if found.differences else 0)


@contextmanager
def _opened(store: str | None, views: str | None) -> Iterator[tuple[Views, FeatureStore]]:
    """The declared views and the store, which is closed at the end."""
    from feature_store.opening import open_store
    from feature_store.settings import read_feature_settings
    from feature_store.views import load_views

    settings = read_feature_settings(store=store, views=views)
    declared = load_views(settings.views)
    opened = open_store(settings.store, settings.timeouts)
    try:
        yield declared, opened
    finally:
        opened.close()


def _columns(given: list[str] | None) -> dict[str, str]:
    from recsys.errors import ConfigError

    pairs = [text.partition("=") for text in given or ()]
    if bad := [name for name, equals, source in pairs if not (name and equals and source)]:
        raise ConfigError("a column is given as COLUMN=NAME", field="column", value=bad, remedy="see --help")
    return {name: source for name, _, source in pairs}


def _shown(view: View, reading: Reading) -> dict[str, Any]:

    values = {name: _plain(value) for name, value in (reading.values or {}).items()}
    entries = [
        dict(zip(("time", "seq", "event_id", *view.names), entry, strict=True)) for entry in reading.entries or ()
    ]
    return {
        "status": reading.status, "reason": reading.reason, "event_time": reading.event_time,
        "created_at": reading.created_at,
    } | ({"values": values} if view.history is None else {"entries": entries})  # fmt: skip


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _field(field: Field) -> str:
    return f"{field.name}: {field.wanted}"


def _age(age: timedelta | None) -> str:
    return "-" if age is None else str(age)
