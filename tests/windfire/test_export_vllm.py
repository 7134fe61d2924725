from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from recsys.backends import choose_backbone
from recsys.backends.vllm_format import ExportManifest
from recsys.backends.vllm_identity import Origin, export_id
from recsys.bundle import Registry, publish_run
from recsys.datasets.prepared import PreparedData
from recsys.errors import ConfigError, WindfireError
from recsys.models import ItemFeatures, RecommenderConfig, build_model
from recsys.storage import write_json_atomically
from windfire.commands.export_vllm import app


def call(*arguments: object) -> Result:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(done.exception, WindfireError):
        raise done.exception
    return done


@pytest.fixture
def qwen_run(tiny_run: Path, tiny_work: Path, tmp_path: Path) -> Path:
    """A run on `tiny_work` of the token shape with a Qwen3 backbone."""
    data = PreparedData.load(tiny_work)
    config = RecommenderConfig(
        data.codebook_sizes, len(data.codes), 6, 4, shape="token", d_model=16, layers=1, heads=2, max_history=10,
        backbone="huggingface",
    )  # fmt: skip
    features = ItemFeatures(data.codes, data.text, data.collaborative, data.train_counts)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        weights = build_model(config, features, choose_backbone).state_dict()
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    save_file(weights, run / "model" / "weights.safetensors")
    write_json_atomically(run / "model" / "config.json", config.to_dict())
    return run


def test_a_run_and_the_bundle_made_of_it_have_the_same_identity(
    qwen_run: Path, tiny_work: Path, tmp_path: Path
) -> None:
    done = call("--run", qwen_run, "--data", tiny_work, "--out", tmp_path / "one")
    registry = Registry(tmp_path / "registry")
    published = publish_run(registry, run=qwen_run, work=tiny_work, created=datetime(2026, 1, 1, tzinfo=UTC))
    call("--registry", registry.root, "--out", tmp_path / "other")
    call("--registry", registry.root, "--version", published.version, "--out", tmp_path / "third")
    one, other, third = (ExportManifest.load(tmp_path / name) for name in ("one", "other", "third"))
    bundle = registry.open_current()
    expected = export_id(Origin(published.model_version, "tok-1"), bundle.codes, bundle.train_counts)
    assert {one.export_id, other.export_id, third.export_id} == {expected}
    assert (one.bundle_version, other.bundle_version) == (None, published.version)
    assert f"exported {expected}: model {published.model_version}, 48 items, 48 last tokens" in done.stdout


def test_a_compact_bundle_is_refused(tiny_registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shape: token"):
        call("--registry", tiny_registry.root, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    "options", [(), ("--run", "run"), ("--registry", "r", "--run", "run", "--data", "work"), ("--data", "work")]
)
def test_a_model_comes_from_one_place(options: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        call(*options, "--out", tmp_path / "out")
    assert raised.value.field == "registry"
