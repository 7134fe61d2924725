"""Items that come after training: read by their content, and without a trace in what was there before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from recsys.backends import choose_engine
from recsys.decoding.building import build_decoder
from recsys.decoding.decoder import ExtendsItems
from recsys.decoding.eligibility import Eligibility
from recsys.decoding.trie import SidTrie
from recsys.models import AnyRecommender, ItemFeatures, RecommenderConfig, build_model
from recsys.models.item_input import ItemInput

SIZES, ITEMS, NEW = (4, 4, 3), 20, 5


def features(count: int) -> ItemFeatures:
    """Of the first items; what does not belong to training's items is unknown."""
    rng = np.random.default_rng(5)
    codes = np.stack([rng.integers(0, size, ITEMS + NEW) for size in SIZES], axis=1).astype(np.int32)
    text = rng.normal(size=(ITEMS + NEW, 6)).astype(np.float32)
    other = rng.normal(size=(ITEMS + NEW, 4)).astype(np.float32)
    counts = np.where(np.arange(ITEMS + NEW) < ITEMS, 1, 0)
    return ItemFeatures(codes[:count], text[:count], other[:count], counts[:count])


def config(count: int, **rest: Any) -> RecommenderConfig:
    shape = {"d_model": 16, "layers": 2, "heads": 2, "max_history": 10} | rest
    return RecommenderConfig(SIZES, count, 6, 4, **shape)


def inputs() -> tuple[ItemInput, ItemInput]:
    """One that was made for all items, and one for the first with the same weights."""
    torch.manual_seed(3)
    whole = ItemInput(config(ITEMS + NEW), features(ITEMS + NEW)).eval()
    torch.nn.init.normal_(whole.unknown)
    part = ItemInput(config(ITEMS), features(ITEMS)).eval()
    weights = whole.state_dict()
    weights["id_embedding.weight"] = weights["id_embedding.weight"][:ITEMS]
    part.load_state_dict(weights)
    return whole, part


def test_items_that_come_together_are_those_that_come_apart() -> None:
    every = features(ITEMS + NEW)
    together, apart = inputs()[1], inputs()[1]
    together.add_items(every.codes[ITEMS:], every.text[ITEMS:])
    for item in range(ITEMS, ITEMS + NEW):
        apart.add_items(every.codes[item : item + 1], every.text[item : item + 1])
    items = torch.arange(ITEMS + NEW)[None]
    with torch.inference_mode():
        assert torch.equal(together(items), apart(items))


@pytest.mark.parametrize("frozen", [None, True, False])
def test_an_added_item_is_one_that_nobody_has_used(frozen: bool | None) -> None:
    whole, part = inputs()
    if frozen is not None:
        part.freeze(with_codes=frozen)
    every = features(ITEMS + NEW)
    part.add_items(every.codes[ITEMS : ITEMS + 2], every.text[ITEMS : ITEMS + 2])
    part.add_items(every.codes[ITEMS + 2 :], every.text[ITEMS + 2 :])
    items = torch.tensor([[0, ITEMS, 3, ITEMS + 4], [ITEMS + 1, 1, ITEMS + 2, ITEMS + 3]])
    with torch.inference_mode():
        torch.testing.assert_close(part(items), whole(items))
        torch.testing.assert_close(part.embed_rest(items), whole.embed_rest(items))
        assert torch.equal(part.codes_of(items), whole.codes[items])
        assert torch.equal(part.codes_of(items[:, :1].clamp(max=1)), whole.codes[items[:, :1].clamp(max=1)])
    part.train()
    assert not part.holds_added(items), "weights that train again know nothing of them"


CASES = [
    ("compact", None, "torch"),
    ("compact", None, "onnx"),
    ("token", None, "torch"),
    ("token", "beam", "torch"),
    ("token", "speculative", "torch"),
    ("flat", None, "torch"),
]


def model_of(shape: str, engine: str) -> AnyRecommender:
    torch.manual_seed(3)
    model = build_model(config(ITEMS, shape=shape), features(ITEMS)).eval()
    model.freeze(choose_engine(engine, model.config))
    return model


@pytest.mark.parametrize(("shape", "name", "engine"), CASES)
def test_decoders_read_added_items_and_answer_others_as_before(shape: str, name: str | None, engine: str) -> None:
    trie = SidTrie.build(features(ITEMS).codes, SIZES)
    decoder = build_decoder(model_of(shape, engine), trie, name=name)
    old = [np.array([1, 2, 3]), np.array([4])]

    def scores(*histories: np.ndarray[Any, Any]) -> list[dict[int, float]]:
        result = decoder.decode(histories, k=ITEMS, beam=ITEMS, eligibility=Eligibility())
        return [dict(zip(r.items.tolist(), r.scores.tolist(), strict=True)) for r in result.ranked]

    before = scores(*old)
    every = features(ITEMS + NEW)
    assert isinstance(decoder, ExtendsItems)
    assert decoder.add_items(every.codes[ITEMS:], every.text[ITEMS:])
    assert scores(*old) == before
    first, second, empty = scores(np.array([ITEMS]), np.array([ITEMS + 1]), np.array([], dtype=np.int64))
    assert len(first) == len(second) == ITEMS
    assert first != second
    assert first != empty
    with pytest.raises(Exception, match=f"0..{ITEMS + NEW - 1}"):
        scores(np.array([ITEMS + NEW]))
