from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from recsys.backends import choose_backbone
from recsys.decoding.trie import SidTrie
from recsys.models import build_model
from recsys.models.normaliser import Normaliser
from training.recommender.objectives import Distilled, Smoothing, batch_loss
from training.recommender.settings import TrainSettings
from training.recommender.trainer import item_features, recommender_config

if TYPE_CHECKING:
    from recsys.datasets.prepared import PreparedData


TAUGHT = Distilled(torch.tensor([[7, 11]]), torch.tensor([True]), 0.4)


@pytest.mark.parametrize("distilled", [None, TAUGHT], ids=["alone", "taught"])
@pytest.mark.parametrize("shape", ["compact", "flat"])
def test_smoothing_is_the_uniform_distribution_on_average(
    shape: str, distilled: Distilled | None, tiny_data: PreparedData
) -> None:
    model_settings = {"shape": shape, "d_model": 16, "layers": 1, "heads": 2, "dropout": 0.0, "drop_id": 0.0}
    settings = TrainSettings.parse({"model": model_settings})
    features = item_features(tiny_data, settings)
    torch.manual_seed(3)
    model = build_model(recommender_config(features, tiny_data, settings), features, choose_backbone)
    model.eval()
    normaliser = Normaliser(SidTrie.build(tiny_data.codes, tiny_data.codebook_sizes))
    items, target = torch.tensor([[5, 9, 2]]), torch.tensor([[False, False, True]])
    every = range(len(tiny_data.codes))

    def loss(smoothing: Smoothing | None, teacher: Distilled | None, wanted: int = 2) -> float:
        window = items.clone()
        window[0, 2] = wanted
        return float(batch_loss(model, normaliser, window, target, teacher, smoothing=smoothing).detach())

    smoothed = [loss(Smoothing(torch.tensor([item]), 0.25), distilled) for item in every]
    uniform = sum(loss(None, None, item) for item in every) / len(every)
    assert sum(smoothed) / len(every) == pytest.approx(0.75 * loss(None, distilled) + 0.25 * uniform, rel=1e-5)
    assert max(smoothed) - min(smoothed) > 1e-3
