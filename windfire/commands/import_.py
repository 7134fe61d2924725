"""windfire import."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from recsys.datasets.importing import ImportReport

# a group takes no options after its arguments unless told to
app = typer.Typer(context_settings={"allow_interspersed_args": True})


@app.callback(invoke_without_command=True)
def command(
    dataset: Annotated[
        str, typer.Argument(help="csv, jsonl, parquet, generic, eventlog, exposurelog, or a public set's name.")
    ],
    source: Annotated[Path, typer.Argument(help="The log: a file or a folder.")],
    out: Annotated[Path | None, typer.Option(help="Directory for the tables; replaced as a whole.")] = None,
    mapping: Annotated[Path | None, typer.Option(help="Which column is which field (YAML or JSON).")] = None,
    *,
    check: Annotated[bool, typer.Option("--check", help="Report on the log and write nothing.")] = False,
) -> None:
    """Read a log into tables."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from recsys.datasets.importing import import_dataset

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bars:
        report = import_dataset(dataset, source, out, mapping=mapping, check=check, progress=_Bars(bars))
    _show(report)
    if not check:
        typer.echo(f"tables: {out}")


class _Bars:
    """One bar a stage."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """See `recsys.datasets.importing.Progress`."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage)
        self._bars.update(self._tasks[stage], completed=done, total=total)


def _show(report: ImportReport) -> None:
    from rich.console import Console
    from rich.table import Table

    manifest = report.manifest
    console = Console()
    table = Table("table", "read", "written", "rejected")
    for name, counts in manifest.counts.items():
        table.add_row(name, *(f"{count:,}" for count in (counts.read, counts.written, counts.rejected)))
    console.print(table)
    if manifest.time_is_order:
        typer.echo("times: none; the order of the source is kept, splits by time are refused")
    elif report.time_range is not None:
        typer.echo(f"times: {' to '.join(map(_written_out, report.time_range))}")
    fields = ", ".join(f"{name} = {column}" for name, column in report.columns.items())
    typer.echo(f"fields: {fields}")
    if report.ignored_columns:
        typer.echo(f"ignored columns: {', '.join(report.ignored_columns)}")
    for note, count in manifest.notes.items():
        typer.echo(f"{note.replace('_', ' ')}: {count:,}")
    for reason, count in manifest.reasons.items():
        typer.echo(f"rejected for {reason}: {count:,}")
        for example in report.examples[reason]:
            typer.echo(f"  {example}")


def _written_out(micros: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)).isoformat()
