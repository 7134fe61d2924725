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


@app.command()
def rere(
    data: Annotated[Path, typer.Option(help="The work directory that the run was trained on.")],
    run: Annotated[Path, typer.Option(help="A finished run of `windfire train`, or a bundle of one, to start from.")],
    out: Annotated[Path, typer.Option(help="Run directory; a checkpoint found there is continued.")],
    config: Annotated[Path | None, typer.Option(help="YAML of training.rere.RereSettings.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of samples, draws and reward noise.")] = 1,
) -> None:
    """Train a finished run further by reinforcement: rollouts by constrained beam, rewards, a policy loss (ReRe)."""
    from recsys.datasets.prepared import PreparedData
    from training.rere.asynchronous import train_asynchronously
    from training.rere.settings import RereSettings
    from training.rere.trainer import train_rere

    settings = RereSettings() if config is None else RereSettings.load(config)
    if settings.workers:
        manifest = train_asynchronously(run, data, settings, out, seed=seed, show_progress=True)
    else:
        manifest = train_rere(run, PreparedData.load(data), settings, out, seed=seed, show_progress=True)
    Console(highlight=False).print(
        f"{manifest['steps']} steps, best at {manifest['best_step']}, valid NDCG@10 "
        f"{manifest['metrics']['valid.ndcg@10']:.4f}, {manifest['cpu_seconds']:.0f} CPU seconds → {out}"
    )


@app.command()
def smec(
    data: Annotated[Path, typer.Option(help="Cached vectors (.npy), or a work directory for its text vectors.")],
    out: Annotated[Path, typer.Option(help="Run directory; a checkpoint found there is continued.")],
    queries: Annotated[Path | None, typer.Option(help="Vectors of labelled queries (.npy); with --labels.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="QUERY<tab>DOCUMENT a line, both counted from 0; with --queries.")
    ] = None,
    *,
    next_items: Annotated[
        bool, typer.Option("--next-items", help="Labels from the log of a work directory: what users took next.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="YAML of training.smec.SmecSettings.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of batches, draws and the held-out queries.")] = 1,
) -> None:
    """Fit a compressor: vectors of any encoder, halved step by step; without labels neighbourhoods are kept (SMEC)."""
    from training.smec.data import load_data
    from training.smec.settings import SmecSettings
    from training.smec.trainer import train_smec

    settings = SmecSettings() if config is None else SmecSettings.load(config)
    found = load_data(data, queries=queries, labels=labels, from_log=next_items)
    manifest = train_smec(found, settings, out, seed=seed, show_progress=True)
    console = Console(highlight=False)
    for width in manifest["widths"]:
        kept = {name: manifest["metrics"][f"d{width}.{name}.neighbours@10"] for name in ("smec", "pca", "truncation")}
        shown = ", ".join(f"{name} {value:.1%}" for name, value in kept.items())
        ndcg = manifest["metrics"].get(f"d{width}.smec.ndcg@10")
        console.print(
            f"{width} of {manifest['dimension']}: nearest ten kept: {shown}"
            + ("" if ndcg is None else f"; nDCG@10 of held-out queries {ndcg:.4f}")
        )
    console.print(f"{manifest['steps']} steps, {manifest['cpu_seconds']:.0f} CPU seconds → {out}", markup=False)


@app.command("draft-head")
def draft_head(
    run: Annotated[Path, typer.Option(help="What `windfire import-model` wrote, or a bundle of it.")],
    data: Annotated[Path, typer.Option(help="The work directory that the import wrote (OUT/work).")],
    out: Annotated[Path, typer.Option(help="Run directory; a checkpoint found there is continued.")],
    config: Annotated[Path | None, typer.Option(help="YAML of training.draft_head.HeadSettings.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, histories and draws.")] = 1,
    *,
    freeze_backbone: Annotated[bool, typer.Option(help="The imported weights stay as they are.")] = True,
) -> None:
    """Fit head and placeholders to an imported model, so that `nezha` and `speculative` serve it."""
    from recsys.datasets.prepared import PreparedData
    from recsys.errors import ConfigError
    from training.draft_head.settings import HeadSettings
    from training.draft_head.trainer import fit_head

    if not freeze_backbone:
        raise ConfigError(
            "an imported model's weights are not ours to change",
            field="freeze-backbone",
            value=False,
            remedy="leave the option out; train the model where it comes from and import it again",
        )
    settings = HeadSettings() if config is None else HeadSettings.load(config)
    manifest = fit_head(run, PreparedData.load(data), settings, out, seed=seed, show_progress=True)
    metrics = manifest["metrics"]
    console = Console(highlight=False)
    console.print(
        f"{manifest['steps']} steps, best at {manifest['best_step']}; head against the model's own beam: "
        f"the same first item {metrics['valid.top1']:.1%}, top-10 overlap {metrics['valid.top10']:.1%}"
    )
    if "valid.ndcg@10" in metrics:
        console.print(f"valid NDCG@10: head {metrics['valid.ndcg@10']:.4f}, beam {metrics['valid.ndcg@10.beam']:.4f}")
    console.print(f"licence of the weights: {manifest['settings']['imported']['licence']} → {out}", markup=False)


@app.command()
def fusion(
    run: Annotated[Path, typer.Option(help="A finished run of `windfire train`; receives the folder fusion.")],
    data: Annotated[Path, typer.Option(help="The work directory that the run was trained on.")],
    second: Annotated[
        Path | None, typer.Option(help="A finished run of shape flat on the same data: scores the candidates, too.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML of training.fusion.FusionSettings.")] = None,
) -> None:
    """Fit what the decoder `fused` ranks by to a run: an item-to-item table, perhaps a second model, their weights."""
    from recsys.datasets.prepared import PreparedData
    from training.fusion.fitting import fit_fusion
    from training.fusion.settings import FusionSettings

    settings = FusionSettings() if config is None else FusionSettings.load(config)
    manifest = fit_fusion(run, PreparedData.load(data), settings, second=second, show_progress=True)
    validation = manifest["validation"]
    console = Console(highlight=False)
    console.print(f"{manifest['entries']:,} neighbours of {manifest['items']:,} items; valid NDCG@10 by their weight:")
    for name, values in {"0": validation["ndcg@10"], **validation.get("ndcg@10.second", {})}.items():
        beside = "" if second is None else f"second model {name}: "
        console.print(beside + ", ".join(f"{weight} {value:.4f}" for weight, value in values.items()))
    kept = manifest.get("second", {"weight": 0})["weight"]
    chosen = f"weight {manifest['weight']:g}" + (f", second model {kept:g}" if second is not None else "")
    unused = "" if manifest["weight"] or kept else ": `fused` will answer as `nezha`"
    console.print(f"{chosen}{unused} → {run / 'fusion'}", markup=False)
