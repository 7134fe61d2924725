"""A frozen model answers as before, and forgets its tables when it trains again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.models import ItemFeatures, Recommender, RecommenderConfig, TokenRecommender, build_model
from recsys.models.item_input import ItemInput

ITEMS, SIZES = 40, (5, 4, 6)
HISTORIES = torch.tensor([[1, 2, 3, 4], [7, 8, -1, -1], [-1, -1, -1, -1]])
LENGTHS = torch.tensor([4, 2, 0])


def built(shape: str, **changes: object) -> Recommender:
    rng = np.random.default_rng(3)
    codes = np.stack([rng.integers(size, size=ITEMS) for size in SIZES], axis=1).astype(np.int32)
    text = rng.standard_normal((ITEMS, 3)).astype(np.float32)
    features = ItemFeatures(codes, text, text[:, :2], rng.integers(0, 2, ITEMS))
    torch.manual_seed(3)
    config = RecommenderConfig.from_dict(
        {"codebook_sizes": SIZES, "num_items": ITEMS, "text_dim": 3, "collaborative_dim": 2, "shape": shape,
         "d_model": 16, "layers": 2, "heads": 2, **changes}
    )  # fmt: skip
    model = build_model(config, features).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # no gain of a norm stays at 1
    return model.eval()


@pytest.mark.parametrize("rows", [[0], [1], [2], [0, 1, 2]])
@pytest.mark.parametrize("shape", ["compact", "token", "flat"])
def test_frozen_answers_equal_unfrozen_ones(shape: str, rows: list[int]) -> None:
    model = built(shape)
    longest = max(1, int(LENGTHS[rows].max()))
    with torch.inference_mode():
        before = model.encode(HISTORIES[rows, :longest], LENGTHS[rows])
        model.freeze()
        after = model.encode(HISTORIES[rows, :longest], LENGTHS[rows])
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)


def test_a_frozen_prompt_keeps_its_cache() -> None:
    model = built("token")
    assert isinstance(model, TokenRecommender)
    with torch.inference_mode():
        before = model.encode_prompt(HISTORIES, LENGTHS)
        model.freeze()
        after = model.encode_prompt(HISTORIES, LENGTHS)
    for old, new in zip(before.cache.keys + before.cache.values, after.cache.keys + after.cache.values, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", ["compact", "token", "flat"])
def test_training_again_forgets_what_was_frozen(shape: str) -> None:
    model = built(shape)
    model.freeze()
    model.train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    model.eval()
    moved = built(shape)
    with torch.inference_mode():
        for parameter in moved.parameters():
            parameter.add_(0.1)
        torch.testing.assert_close(model.encode(HISTORIES, LENGTHS), moved.encode(HISTORIES, LENGTHS))


def test_a_catalog_beyond_the_limit_stays_unfrozen() -> None:
    frozen = {limit: _frozen_table(limit) for limit in (ITEMS * 16 * 8 - 1, ITEMS * 16 * 8)}
    assert [table is None for table in frozen.values()] == [True, False]


def _frozen_table(limit: int) -> torch.Tensor | None:
    part = next(module for module in built("compact").modules() if isinstance(module, ItemInput))
    part.freeze(with_codes=True, limit=limit)
    return part._frozen
