"""`windfire train`: fit a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(no_args_is_help=True)


@app.callback()
def group() -> None:
    """Fit a model."""


@app.command()
def recommender(
    data: Annotated[Path, typer.Option(help="Work directory of `windfire offline run`.")],
    out: Annotated[Path, typer.Option(help="Run directory; a checkpoint found there is continued.")],
    config: Annotated[Path | None, typer.Option(help="YAML of training.recommender.TrainSettings.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, dropout, sampler and teacher.")] = 1,
    parent: Annotated[Path | None, typer.Option(help="Run directory or bundle to start from (warm start).")] = None,
) -> None:
    """Fit backbone and draft head. Under torchrun every process takes its share of each batch."""
    from recsys.datasets.prepared import PreparedData
    from training.recommender.settings import TrainSettings
    from training.recommender.trainer import train
    from training.recommender.warm_start import load_parent

    prepared = PreparedData.load(data)
    manifest = train(
        prepared,
        TrainSettings() if config is None else TrainSettings.load(config),
        out,
        seed=seed,
        parent=None if parent is None else load_parent(parent, prepared),
        show_progress=True,
    )
    Console().print(
        f"{manifest['steps']} steps, best at {manifest['best_step']}, valid NDCG@10 "
        f"{manifest['metrics']['valid.ndcg@10']:.4f}, {manifest['cpu_seconds']:.0f} CPU seconds → {out}"
    )
