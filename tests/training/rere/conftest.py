from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from recsys.models import ItemFeatures, RecommenderConfig, build_model
from training.recommender.settings import TrainSettings
from training.recommender.trainer import train
from training.rere.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from recsys.datasets.prepared import PreparedData

# Items 5 and 6 share a semantic ID.
CODES = np.array([[0, 0, 0], [0, 0, 2], [0, 1, 1], [1, 0, 0], [1, 1, 0], [2, 1, 2], [2, 1, 2]])
SFT = {
    "model": {"d_model": 32, "layers": 1, "heads": 2, "max_history": 8, "dropout": 0.1},
    "teacher": {"kind": "none"},
    "steps": 40,
    "batch_tokens": 256,
    "evaluate_every": 20,
    "bf16": False,
    "threads": 1,
}


@pytest.fixture
def make_policy() -> Callable[..., Policy]:
    """A small policy with random weights; keyword arguments go to the model's configuration."""

    def make(**changes: Any) -> Policy:
        shape: dict[str, Any] = {"d_model": 8, "layers": 1, "heads": 2, "max_history": 6, "item_rows": True, **changes}
        config = RecommenderConfig((3, 2, 3), len(CODES), 3, 2, **shape)
        torch.manual_seed(3)
        rng = np.random.default_rng(0)
        text, collaborative = (rng.standard_normal((len(CODES), width)).astype(np.float32) for width in (3, 2))
        features = ItemFeatures(CODES, text, collaborative, np.ones(len(CODES), np.int64))
        model = build_model(config, features)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        return Policy(model, CODES)

    return make


@pytest.fixture(scope="session")
def sft_run(tiny_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A half-trained recommender. Read only."""
    out = tmp_path_factory.mktemp("sft") / "run"
    train(tiny_data, TrainSettings.parse(SFT), out, seed=1)
    return out
