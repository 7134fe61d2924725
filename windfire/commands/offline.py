"""windfire offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from offline.job import JobManifest
    from offline.pipeline import TokenizerMode
    from offline.settings import OfflineSettings

app = typer.Typer(no_args_is_help=True)


@app.callback()
def group() -> None:
    """Spark jobs from tables to semantic IDs."""


@app.command()
def run(
    data: Annotated[Path, typer.Option(help="Tables of `windfire import` or `windfire simulate`.")],
    out: Annotated[Path, typer.Option(help="Work directory, one folder per job; made when absent.")],
    config: Annotated[Path | None, typer.Option(help="Settings of the jobs (YAML); see docs/offline.md.")] = None,
    split: Annotated[str | None, typer.Option(help="leave_one_out, latest or global_time.")] = None,
    positive_actions: Annotated[
        str | None, typer.Option(help="Comma-separated; default click,cart,purchase,like.")
    ] = None,
    increment: Annotated[list[Path] | None, typer.Option(help="Later tables, oldest first; repeat the option.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="build new semantic IDs, or extend: items keep theirs. With --increment: extend.")
    ] = None,
    warm_start: Annotated[
        Path | None, typer.Option(help="An earlier work directory: new semantic IDs begin with its tokenizer.")
    ] = None,
    master: Annotated[str, typer.Option(help="Spark master.")] = "local[*]",
    spark: Annotated[list[str] | None, typer.Option(help="Spark setting name=value; repeat the option.")] = None,
) -> None:
    """Run the jobs whose inputs, settings or code changed; a killed run resumes at the job that was cut off."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from offline.pipeline import JOBS, run_pipeline

    chosen = _settings(config, split, positive_actions, warm_start)
    columns = (TextColumn("{task.description:16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("starting", total=len(JOBS))
        manifests = run_pipeline(
            data,
            out,
            chosen,
            master=master,
            increments=increment or (),
            tokenizer=_tokenizer_mode(tokenizer),
            spark=_spark_settings(spark or ()),
            on_start=lambda name: bars.update(task, description=name),
            on_done=lambda _: bars.advance(task),
        )
    _show(manifests)


def _settings(
    config: Path | None, split: str | None, positive_actions: str | None, warm_start: Path | None
) -> OfflineSettings:
    from offline.settings import OfflineSettings

    settings = OfflineSettings() if config is None else OfflineSettings.load(config)
    changes: dict[str, Any] = settings.model_dump()
    if split is not None:
        changes["split"]["strategy"] = split
    if positive_actions is not None:
        changes["positive_actions"] = [word.strip() for word in positive_actions.split(",") if word.strip()]
    if warm_start is not None:
        changes["semantic_ids"]["warm_start"] = warm_start
    return OfflineSettings.parse(changes)


def _tokenizer_mode(asked: str | None) -> TokenizerMode | None:
    from recsys.errors import ConfigError

    modes: dict[str | None, TokenizerMode | None] = {None: None, "build": "build", "extend": "extend"}
    if asked not in modes:
        raise ConfigError("no such mode", field="tokenizer", value=asked, remedy="use build or extend")
    return modes[asked]


def _spark_settings(pairs: Sequence[str]) -> dict[str, str]:
    from recsys.errors import ConfigError

    split = [pair.partition("=") for pair in pairs]
    for pair, (_, sign, _) in zip(pairs, split, strict=True):
        if not sign:
            raise ConfigError("a Spark setting is name=value", field="spark", value=pair, remedy="add =value")
    return {name: value for name, _, value in split}


def _show(manifests: Sequence[JobManifest]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("job", "", "rows", "seconds", "CPU seconds", "counts")
    for manifest in manifests:
        state = "skipped" if manifest.skipped else "increment" if manifest.increment else "made"
        times = ("", "") if manifest.skipped else (f"{manifest.seconds:.1f}", f"{manifest.cpu_seconds:.1f}")
        found = [f"{name} {count:,}" for name, count in manifest.counts.items() if name != "written"]
        rest = ", ".join(found + [f"{name} {value:.3f}" for name, value in manifest.measures.items()])
        table.add_row(manifest.job, state, f"{manifest.counts['written']:,}", *times, rest)
    done = [manifest for manifest in manifests if not manifest.skipped]
    seconds, processor = (sum(getattr(m, name) for m in done) for name in ("seconds", "cpu_seconds"))
    table.add_section()
    table.add_row("together", f"{len(done)} run", "", f"{seconds:.1f}", f"{processor:.1f}", "")
    Console().print(table)
