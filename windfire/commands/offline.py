"""windfire offline."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from offline.job import JobManifest
    from offline.pipeline import TokenizerMode
    from offline.settings import OfflineSettings
    from recsys.semantic_ids.quality import SidQuality
    from windfire.sid_report import Vectors as VectorsName

app = typer.Typer(no_args_is_help=True)


class Vectors(StrEnum):
    """Which vectors say what is alike."""

    OWN = "own"
    TEXT = "text"
    COLLABORATIVE = "collaborative"
    FUSED = "fused"


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


@app.command("report-sids")
def report_sids(
    data: Annotated[Path | None, typer.Option(help="Work directory of `windfire offline run`.")] = None,
    sids: Annotated[Path | None, typer.Option(help="Somebody else's SID file: .json, .json.gz or .parquet.")] = None,
    pattern: Annotated[
        str, typer.Option(help="Of a code's token where the file holds numbers.")
    ] = "<s_{letter}_{code}>",
    shift: Annotated[int, typer.Option(help="Added to the item ids of the SID file.")] = 0,
    vectors: Annotated[
        Vectors, typer.Option(help="What says which items are alike; own: what the tokenizer was built on.")
    ] = Vectors.OWN,
    category_depth: Annotated[int, typer.Option(min=1, help="Names of the category path that count.")] = 2,
    neighbours: Annotated[int, typer.Option(min=1, help="Nearest neighbours that are looked at.")] = 10,
    sample: Annotated[int, typer.Option(min=1, help="Items whose neighbours are looked at.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Write plots of code use and children here.")] = None,
) -> None:
    """Measure semantic IDs: code use, collisions, purity by category, neighbours kept, reconstruction."""
    from benchmarks.figures import Report, environment, now
    from recsys.errors import ConfigError
    from recsys.semantic_ids.plot import plot_sids
    from recsys.storage import write_bytes_atomically
    from windfire.sid_report import figures_of, subject_of_file, subject_of_work

    started = now()
    chosen: VectorsName = vectors.value
    if sids is not None:
        subject = subject_of_file(sids, pattern, work=data, shift=shift, vectors=chosen, depth=category_depth)
    elif data is not None:
        subject = subject_of_work(data, vectors=chosen, depth=category_depth)
    else:
        raise ConfigError("nothing to measure", field="data", value=None, remedy="give --data, --sids or both")
    quality = subject.measure(neighbours=neighbours, sample=sample, seed=seed)
    _show_quality(quality, subject.name, subject.left_out)
    if json_file is not None:
        settings = {
            "tokenizer_version": subject.name,
            "codebook_sizes": list(subject.sizes),
            "vectors": chosen,
            "category_depth": category_depth,
            "neighbours": neighbours,
            "sample": sample,
        }
        command = shlex.join(["windfire", *sys.argv[1:]])
        figures = figures_of(quality, sample=sample)
        Report(command, settings, [seed], figures, started, environment()).save(json_file)
    if svg is not None:
        write_bytes_atomically(svg, plot_sids(subject.codes, subject.sizes).encode())


def _show_quality(quality: SidQuality, name: str, left_out: tuple[int, int]) -> None:
    from rich.console import Console
    from rich.table import Table

    def share(value: float | None, chance: float | None = None) -> str:
        beside = "" if chance is None else f" ({chance:.3f})"
        return "" if value is None else f"{value:.3f}{beside}"

    titles = ("level", "codes used", "even use", "bits", "prefixes", "children", "purity", "neighbours", "unexplained")
    table = Table(*titles, title=f"semantic IDs {name}", box=None)
    bar = 10
    for number, level in enumerate(quality.levels, start=1):
        even = "█" * round(bar * level.evenness)
        table.add_row(
            str(number),
            f"{level.used:,} of {level.size:,}",
            f"{even:·<{bar}} {level.evenness:.2f}",
            f"{level.entropy:.2f}",
            f"{level.prefixes:,}",
            f"{level.children_mean:.1f}, at most {level.children_max:,}",
            share(level.purity, level.purity_chance),
            share(level.kept, level.kept_chance),
            share(level.unexplained),
        )
    console = Console()
    console.print(table)
    console.print(
        f"{quality.items:,} items, {quality.distinct:,} semantic IDs; {quality.colliding:,} items share theirs, "
        f"at most {quality.largest_bucket:,} one. In brackets: by chance."
    )
    if quality.reconstruction_error is not None:
        console.print(f"Reconstruction error {quality.reconstruction_error:.3f} of the vectors' variance.")
    if any(left_out):
        console.print(f"{left_out[0]:,} items of the file are not in the catalogue, {left_out[1]:,} only there.")


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
