"""`windfire simulate`: write a simulated marketplace's log as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from recsys.datasets.marketplace import named_size, simulate
from recsys.records import TablesManifest

app = typer.Typer()


@app.callback(invoke_without_command=True)
def command(
    out: Annotated[Path, typer.Option(help="Directory of the tables; replaced when all is written.")],
    size: Annotated[str, typer.Option(help="tests, demo or large.")] = "demo",
    seed: Annotated[int, typer.Option(help="Which world.")] = 0,
    days: Annotated[int | None, typer.Option(help="Days to write; the size's own number by default.")] = None,
    from_day: Annotated[int, typer.Option(help="First day to write; later days are daily increments.")] = 0,
    users: Annotated[int | None, typer.Option(help="Users of the world, instead of the size's number.")] = None,
    items: Annotated[int | None, typer.Option(help="Items of the world, instead of the size's number.")] = None,
    workers: Annotated[int, typer.Option(help="Processes; the tables do not depend on it.")] = 1,
) -> None:
    """Write the events of some days of a world, with its items and users."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    ) as bar:
        task = bar.add_task("simulating", total=None)
        manifest = simulate(
            named_size(size, items=items, users=users),
            seed,
            out,
            from_day=from_day,
            days=days,
            workers=workers,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    Console().print(_summary(manifest, out))


def _summary(manifest: TablesManifest, out: Path) -> Table:
    table = Table(title=f"{manifest.dataset} in {out}, {manifest.seconds:.1f} s", title_justify="left")
    table.add_column("rows")
    table.add_column("count", justify="right")
    for name, counts in manifest.counts.items():
        table.add_row(name, f"{counts.written:,}")
    for name, count in manifest.notes.items():
        table.add_row(f"  {name}", f"{count:,}")
    return table
