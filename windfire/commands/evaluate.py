"""windfire evaluate."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.figures import Figure

app = typer.Typer()


class Part(StrEnum):
    """Which held-out events."""

    TEST = "test"
    VALID = "valid"


@app.callback(invoke_without_command=True)
def command(
    registry: Annotated[Path, typer.Option(help="Directory of published bundles.")],
    data: Annotated[Path, typer.Option(help="The work directory that the bundle was trained on.")],
    *,
    version: Annotated[str | None, typer.Option(help="A bundle version; default: the current one.")] = None,
    part: Annotated[Part, typer.Option(help="Held-out events.")] = Part.TEST,
    beam: Annotated[int, typer.Option(min=1, help="Prefixes kept per level.")] = 50,
    decoder: Annotated[str, typer.Option(help="auto, or a decoder of the bundle's model.")] = "auto",
    engine: Annotated[str, typer.Option(help="auto, torch, torch_bf16, onnx or onnx_int8.")] = "auto",
    against: Annotated[str, typer.Option(help="Another engine: how many of the first 20 items are the same.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of the table.")] = False,
) -> None:
    """Measure a bundle on the held-out events, over the full catalogue, with 95 % intervals over users."""
    from benchmarks.figures import Report, environment, now
    from recsys.bundle import Registry, load_decoder
    from recsys.datasets.prepared import PreparedData
    from windfire.evaluation import evaluate_bundle

    started = now()
    store = Registry(registry)
    bundle = store.open_current() if version is None else store.open(version)
    chosen = load_decoder(bundle, None if decoder == "auto" else decoder, engine=engine)
    other = load_decoder(bundle, chosen.name, engine=against) if against else None
    figures = evaluate_bundle(bundle, chosen, PreparedData.load(data), part=part.value, beam=beam, other=other)
    settings = {
        "bundle": bundle.manifest.version,
        "decoder": chosen.name,
        "engine": engine,
        "part": part.value,
        "beam": beam,
    }
    if as_json:
        command_line = shlex.join(["windfire", *sys.argv[1:]])
        report = Report(command_line, settings, (), figures, started, environment())
        typer.echo(json.dumps(asdict(report), indent=2))
    else:
        _show(figures, " ".join(f"{name} {value}" for name, value in settings.items()))


def _show(figures: Sequence[Figure], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "masked", "95 %", "unmasked", "95 %", title=title, box=None)
    by_name = {figure.name: figure for figure in figures}
    for name, masked in by_name.items():
        unmasked = by_name.get(name.replace(".masked.", ".unmasked."))
        if ".masked." in name and unmasked is not None:
            metric = name.rpartition(".")[2]
            table.add_row(metric, *_cells(masked), *_cells(unmasked))
    Console().print(table)


def _cells(figure: Figure) -> tuple[str, str]:
    between = "" if figure.low is None or figure.high is None else f"{figure.low:.4f} to {figure.high:.4f}"
    return f"{figure.value:.4f}", between
