"""Real vLLM servers on a CPU, one at a time, over small Qwen3-shaped models made on the spot."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.vllm_server import VllmServer, vllm_server
from recsys.backends import choose_backbone
from recsys.backends.vllm_export import export_vllm
from recsys.backends.vllm_format import ExportManifest
from recsys.backends.vllm_identity import Origin
from recsys.bundle import Registry, publish_run
from recsys.datasets.prepared import PreparedData
from recsys.decoding.nezha import NezhaDecoder
from recsys.decoding.trie import SidTrie
from recsys.models import ItemFeatures, RecommenderConfig, build_model
from recsys.models.token import TokenRecommender
from recsys.storage import write_json_atomically

SIZES, ITEMS, HISTORY = (8, 6, 10), 300, 30
ORIGIN = Origin("model-1", "tokenizer-1")


@dataclass(frozen=True)
class Exported:
    """A model, its catalogue and the directory that vLLM loads."""

    model: TokenRecommender
    trie: SidTrie
    features: ItemFeatures
    path: Path
    manifest: ExportManifest

    def decoder(self) -> NezhaDecoder:
        """Our own engine."""
        return NezhaDecoder(self.model, self.trie, prior=self.features.train_counts)


def make_model(**changes: Any) -> tuple[TokenRecommender, ItemFeatures]:
    """Weights so large that every part of the input shows in the scores; several items share a semantic ID."""
    rng = np.random.default_rng(5)
    features = ItemFeatures(
        np.stack([rng.integers(size, size=ITEMS) for size in SIZES], axis=1).astype(np.int32),
        rng.standard_normal((ITEMS, 5)).astype(np.float32),
        rng.standard_normal((ITEMS, 4)).astype(np.float32),
        rng.integers(0, 4, ITEMS),
    )
    settings = {
        "codebook_sizes": SIZES, "num_items": ITEMS, "text_dim": 5, "collaborative_dim": 4, "shape": "token",
        "d_model": 64, "layers": 2, "heads": 2, "max_history": HISTORY, "backbone": "huggingface",
        "backbone_config": {"num_key_value_heads": 1},
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = build_model(RecommenderConfig.from_dict(settings | changes), features, choose_backbone)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    assert isinstance(model, TokenRecommender)
    return model.eval(), features


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A model that reads codes, ID, text and collaboration."""
    model, features = make_model()
    path = tmp_path_factory.mktemp("export") / "model"
    manifest = export_vllm(model, features, ORIGIN, path)
    return Exported(model, SidTrie.build(features.codes, SIZES), features, path, manifest)


StartVllm = Callable[..., contextlib.AbstractContextManager[VllmServer]]


@pytest.fixture(scope="session")
def start_vllm(tmp_path_factory: pytest.TempPathFactory) -> StartVllm:
    """Starts vLLM's server over a model's directory and stops it at the end of the block."""
    return partial(vllm_server, folder=tmp_path_factory.mktemp("vllm"))


@pytest.fixture(scope="session")
def qwen_registry(tiny_work: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """`tiny_work` with a run of the token shape and a Qwen3 backbone, published and current."""
    data = PreparedData.load(tiny_work)
    config = RecommenderConfig(
        data.codebook_sizes, len(data.codes), 6, 4, shape="token", d_model=64, layers=1, heads=2, max_history=10,
        backbone="huggingface",
    )  # fmt: skip
    features = ItemFeatures(data.codes, data.text, data.collaborative, data.train_counts)
    with torch.random.fork_rng():
        torch.manual_seed(6)
        model = build_model(config, features, choose_backbone)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    run = tmp_path_factory.mktemp("qwen") / "run"
    shutil.copytree(tiny_run, run)
    save_file(model.state_dict(), run / "model" / "weights.safetensors")
    write_json_atomically(run / "model" / "config.json", config.to_dict())
    registry = Registry(run.parent / "registry")
    publish_run(registry, run=run, work=tiny_work, created=datetime(2026, 1, 1, tzinfo=UTC))
    return registry
