"""windfire export-vllm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recsys.errors import ConfigError

if TYPE_CHECKING:
    from recsys.backends.vllm_identity import Origin
    from recsys.models import AnyRecommender, ItemFeatures, Recommender

app = typer.Typer()


@app.callback(invoke_without_command=True)
def command(
    out: Annotated[Path, typer.Option(help="Directory for the exported model; an export found there is replaced.")],
    *,
    registry: Annotated[Path | None, typer.Option(help="Directory of published bundles.")] = None,
    version: Annotated[str | None, typer.Option(help="A bundle version; default: the current one.")] = None,
    run: Annotated[Path | None, typer.Option(help="What `windfire train recommender` wrote, with --data.")] = None,
    data: Annotated[Path | None, typer.Option(help="The work directory that the run was trained on.")] = None,
) -> None:
    """Write a model of the token shape with a Qwen3 backbone as vLLM loads it; docs/vllm.md says how to serve it."""
    from recsys.backends.vllm_export import export_vllm

    if registry is not None and run is None and data is None:
        model, features, origin = _from_registry(registry, version)
    elif run is not None and data is not None and registry is None and version is None:
        model, features, origin = _from_run(run, data)
    else:
        raise ConfigError(
            "a model comes from one place",
            field="registry",
            value=None if registry is None else str(registry),
            remedy="give --registry (and --version), or --run and --data",
        )
    manifest = export_vllm(model, features, origin, out)
    typer.echo(
        f"exported {manifest.export_id}: model {manifest.model_version}, {manifest.items:,} items, "
        f"{manifest.last_rows:,} last tokens -> {out}"
    )


def _from_registry(registry: Path, version: str | None) -> tuple[Recommender, ItemFeatures, Origin]:
    from recsys.backends.vllm_identity import Origin
    from recsys.bundle import Registry
    from recsys.bundle.loading import load_model
    from recsys.models import ItemFeatures

    store = Registry(registry)
    bundle = store.open_current() if version is None else store.open(version)
    features = ItemFeatures(bundle.codes, bundle.text, bundle.collaborative, bundle.train_counts)
    manifest = bundle.manifest
    origin = Origin(manifest.model_version, manifest.tokenizer_version, manifest.version)
    return _own(load_model(bundle.model_config_path.parent, features, bundle.codebook_sizes)), features, origin


def _from_run(run: Path, work: Path) -> tuple[Recommender, ItemFeatures, Origin]:
    from recsys.backends.vllm_identity import Origin
    from recsys.bundle.loading import load_model
    from recsys.bundle.writer import check_run, load_run_manifest, model_version_of
    from recsys.datasets.prepared import PreparedData
    from recsys.models import ItemFeatures

    data = PreparedData.load(work)
    check_run(run, load_run_manifest(run), data)
    features = ItemFeatures(data.codes, data.text, data.collaborative, data.train_counts)
    origin = Origin(model_version_of(run), data.tokenizer_version)
    return _own(load_model(run / "model", features, data.codebook_sizes)), features, origin


def _own(model: AnyRecommender) -> Recommender:
    from recsys.models import PromptedRecommender

    if isinstance(model, PromptedRecommender):
        raise ConfigError(
            "a model that was imported runs behind its own prompt, which the plug-in does not write",
            field="model",
            value="imported",
            remedy="serve it by `windfire serve`",
        )
    return model
