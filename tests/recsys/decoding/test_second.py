"""A second model beside the one that decodes: against its own decoder, and inside `fused` against brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.decoding.building import build_decoder
from recsys.decoding.eligibility import Eligibility
from recsys.decoding.flat import FlatDecoder
from recsys.decoding.fused import FusedDecoder, Fusion, Second
from recsys.decoding.neighbours import Neighbours
from recsys.decoding.second import SecondModel
from recsys.decoding.trie import SidTrie
from recsys.errors import ConfigError, DataError, InputError
from recsys.models import ItemFeatures, RecommenderConfig, build_model

ITEMS, SIZES = 30, (4, 3, 5)
HISTORIES = [np.array([3, 7, 9, 3], np.int32), np.array([], np.int32), np.array([1], np.int32)]
QUESTION: dict[str, Any] = {"beam": 64, "eligibility": Eligibility()}


def model_of(seed: int, shape: str, items: int = ITEMS) -> tuple[Any, np.ndarray]:
    rng = np.random.default_rng(7)
    codes = np.stack([rng.integers(size, size=items) for size in SIZES], axis=1).astype(np.int32)
    vectors = rng.standard_normal((items, 3)).astype(np.float32)
    torch.manual_seed(seed)
    config = RecommenderConfig(SIZES, items, 3, 3, shape=shape, d_model=16, layers=1, heads=2)  # type: ignore[arg-type]
    model = build_model(config, ItemFeatures(codes, vectors, vectors, np.ones(items, np.int64))).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model, codes


def table(items: int = ITEMS) -> Neighbours:
    offsets = np.arange(items + 1, dtype=np.int64)
    return Neighbours(offsets, np.roll(np.arange(items, dtype=np.int32), 1), np.full(items, 0.5, np.float32))


def fusion(second: Second | None, weight: float = 0.0, candidates: int = ITEMS) -> Fusion:
    return Fusion(table(), weight=weight, floor=0.01, decay=0.5, max_history=5, candidates=candidates, second=second)


def test_its_scores_are_those_of_its_own_decoder_but_for_the_normaliser() -> None:
    model, _ = model_of(1, "flat")
    scores = SecondModel(model).scores(HISTORIES, [np.arange(ITEMS)] * 3)
    for own, ranked in zip(scores, FlatDecoder(model).decode(HISTORIES, k=ITEMS, **QUESTION).ranked, strict=True):
        np.testing.assert_allclose(own[ranked.items] - np.logaddexp.reduce(own), ranked.scores, atol=1e-9)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 100),
    weight=st.sampled_from([0.0, 0.7]),
    second=st.sampled_from([0.4, 3.0]),
    k=st.integers(1, ITEMS),
    candidates=st.integers(1, ITEMS),
)
def test_the_fused_answer_is_the_inner_one_ranked_anew(
    seed: int, weight: float, second: float, k: int, candidates: int
) -> None:
    model, codes = model_of(seed, "compact")
    other, _ = model_of(seed + 1, "flat")
    trie, beside = SidTrie.build(codes, SIZES), SecondModel(other)
    inner = build_decoder(model, trie, name="nezha")
    decoder = FusedDecoder(inner, fusion(Second(beside, second), weight, candidates), trie)
    found = inner.decode(HISTORIES, k=max(k, candidates), **QUESTION)
    answer = decoder.decode(HISTORIES, k=k, **QUESTION)
    told = beside.scores(HISTORIES, [ranked.items for ranked in found.ranked])
    near = table().scores(HISTORIES, [ranked.items for ranked in found.ranked], decay=0.5, max_history=5)
    for before, ranked, own, similarity in zip(found.ranked, answer.ranked, told, near, strict=True):
        total = before.scores + weight * np.log(similarity + 0.01) + second * own
        assert ranked.items.tolist() == before.items[np.argsort(-total, kind="stable")][:k].tolist()
        np.testing.assert_allclose(ranked.scores, np.sort(total)[::-1][:k], rtol=1e-12)
    assert answer.spent.forwards == found.spent.forwards + 1
    assert answer.spent.tokens == found.spent.tokens + sum(len(history) + 1 for history in HISTORIES)


def test_without_weights_it_is_the_inner_decoder() -> None:
    model, codes = model_of(3, "compact")
    other, _ = model_of(4, "flat")
    trie = SidTrie.build(codes, SIZES)
    inner = build_decoder(model, trie, name="nezha")
    idle = FusedDecoder(inner, fusion(Second(SecondModel(other), 0.0)), trie)
    one, two = inner.decode(HISTORIES, k=9, **QUESTION), idle.decode(HISTORIES, k=9, **QUESTION)
    assert one.spent == two.spent
    assert [each.items.tolist() for each in one.ranked] == [each.items.tolist() for each in two.ranked]


def test_added_items_count_as_the_median_and_can_stand_in_a_history() -> None:
    model, codes = model_of(5, "compact")
    other, _ = model_of(6, "flat")
    trie, beside = SidTrie.build(codes, SIZES), SecondModel(other)
    decoder = FusedDecoder(build_decoder(model, trie, name="nezha"), fusion(Second(beside, 1.0), 0.5), trie)
    with pytest.raises(InputError, match=r"0\.\.29"):
        beside.scores([np.array([ITEMS])], [np.array([0])])
    assert decoder.add_items(np.array([[0, 0, 0]], np.int32), np.ones((1, 3), np.float32))
    history = [np.array([2, ITEMS, 4])]
    scores = beside.scores(history, [np.array([1, ITEMS, 5, 8])])[0]
    assert scores[1] == np.median(scores[[0, 2, 3]])
    assert beside.scores(history, [np.array([ITEMS])])[0].tolist() == [0.0]
    without = beside.scores([np.array([2, 4])], [np.array([1, 5, 8])])[0]
    assert not np.allclose(scores[[0, 2, 3]], without)
    assert len(decoder.decode(history, k=7, **QUESTION).ranked[0].items) == 7


def test_what_cannot_be_a_second_model_is_refused() -> None:
    smaller, _ = model_of(1, "flat", items=20)
    with pytest.raises(ConfigError, match="must know 30 items") as raised:
        fusion(Second(SecondModel(smaller), 1.0))
    assert (raised.value.field, raised.value.value) == ("second", 20)
    fitting, _ = model_of(1, "flat")
    for weight in (-0.1, np.inf, np.nan):
        with pytest.raises(ConfigError, match="0 or more") as raised:
            Second(SecondModel(fitting), weight)
        assert raised.value.field == "second.weight"
    torch.nn.init.constant_(fitting.output.weight, torch.nan)
    with pytest.raises(DataError, match="not finite"):
        SecondModel(fitting).scores(HISTORIES, [np.array([1])] * 3)
