"""The fused decoder against brute force over tiny catalogues, in float64, and against the decoder inside it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.decoding.building import build_decoder
from recsys.decoding.decoder import Decoder, Ranked
from recsys.decoding.eligibility import Eligibility
from recsys.decoding.fused import FusedDecoder, Fusion, Reranker
from recsys.decoding.live_catalogue import LiveCatalogue
from recsys.decoding.log_prior import LogPrior
from recsys.decoding.neighbours import Neighbours
from recsys.decoding.segments import Segments
from recsys.decoding.trie import SidTrie
from recsys.errors import ConfigError, InputError
from recsys.models import ItemFeatures, RecommenderConfig, build_model

ITEMS, SIZES = 30, (4, 3, 5)
HISTORIES = [np.array([3, 7, 9, 3], np.int32), np.array([], np.int32), np.array([1], np.int32)]
DECAY, LIMIT, FLOOR = 0.7, 3, 0.01


def similarity(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    dense = (rng.random((ITEMS, ITEMS)) * (rng.random((ITEMS, ITEMS)) < 0.4)).astype(np.float32)
    np.fill_diagonal(dense, 0)
    return dense


def fusion(dense: np.ndarray, weight: float, candidates: int) -> Fusion:
    rows, columns = np.nonzero(dense)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(dense)))]).astype(np.int64)
    table = Neighbours(offsets, columns.astype(np.int32), dense[rows, columns])
    return Fusion(table, weight=weight, floor=FLOOR, decay=DECAY, max_history=LIMIT, candidates=candidates)


def built(seed: int, shape: str = "compact") -> tuple[Any, SidTrie, np.ndarray]:
    """A model of random weights, its trie (some items share a semantic ID) and a prior with equal values in it."""
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(size, size=ITEMS) for size in SIZES], axis=1).astype(np.int32)
    vectors = rng.standard_normal((ITEMS, 3)).astype(np.float32)
    torch.manual_seed(seed)
    config = RecommenderConfig(SIZES, ITEMS, 3, 3, shape=shape, d_model=16, layers=1, heads=2)  # type: ignore[arg-type]
    model = build_model(config, ItemFeatures(codes, vectors, vectors, np.ones(ITEMS, np.int64))).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model, SidTrie.build(codes, SIZES), rng.integers(3, size=ITEMS)


def s_of(dense: np.ndarray, history: np.ndarray) -> np.ndarray:
    rows = [DECAY**age * dense[item].astype(float) for age, item in enumerate(history[::-1][:LIMIT])]
    return np.asarray(np.sum([np.zeros(ITEMS), *rows], axis=0))


def expected(found: Ranked, values: np.ndarray, trie: SidTrie, prior: np.ndarray, k: int) -> list[int]:
    """The items of an answer by their new scores, in Python's own order."""
    scores = dict(zip(found.items.tolist(), found.scores.tolist(), strict=True))
    fused = {item: round(score + float(values[item]), 9) for item, score in scores.items()}
    leaf = trie.item_node[:, -1]
    return sorted(fused, key=lambda item: (-fused[item], leaf[item], -prior[item], item))[:k]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1000),
    k=st.integers(1, ITEMS + 3),
    candidates=st.integers(1, ITEMS + 3),
    weight=st.sampled_from([0.1, 1.0, 10.0]),
    share=st.floats(0, 1),
)
def test_it_is_the_inner_answer_ranked_anew(seed: int, k: int, candidates: int, weight: float, share: float) -> None:
    model, trie, prior = built(seed)
    dense, shown = similarity(seed), np.random.default_rng(seed).random(ITEMS) < share
    eligibility = Eligibility(shared=shown, excluded=[history.copy() for history in HISTORIES])
    decoder = build_decoder(model, trie, name="fused", prior=prior, fusion=fusion(dense, weight, candidates))
    answer = decoder.decode(HISTORIES, k=k, beam=64, eligibility=eligibility)
    wanted = max(k, candidates)
    inner = build_decoder(model, trie, prior=prior).decode(HISTORIES, k=wanted, beam=64, eligibility=eligibility)
    assert answer.spent == inner.spent
    for history, found, ranked in zip(HISTORIES, inner.ranked, answer.ranked, strict=True):
        values = weight * np.log(s_of(dense, history) + FLOOR)
        eligible = set(np.flatnonzero(shown).tolist()) - set(history.tolist())
        assert ranked.items.tolist() == expected(found, values, trie, prior, k)
        assert set(ranked.items.tolist()) <= eligible
        assert len(ranked.items) == min(k, len(eligible))
        old = dict(zip(found.items.tolist(), found.scores.tolist(), strict=True))
        np.testing.assert_allclose(
            ranked.scores, [old[item] + values[item] for item in ranked.items.tolist()], rtol=1e-9, atol=1e-9
        )
        assert all(one >= other for one, other in pairwise(ranked.scores.tolist()))
        assert ranked.scores.dtype == found.scores.dtype
        assert ranked.items.dtype == np.int32


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), weight=st.sampled_from([0.3, 3.0]))
def test_with_all_items_as_candidates_it_is_the_best_of_the_catalogue(seed: int, weight: float) -> None:
    """Against the scores of every item, whatever finds them; the log-prior stays in."""
    model, trie, prior = built(seed)
    dense, rng = similarity(seed), np.random.default_rng(seed)
    values, shown = rng.normal(size=ITEMS), rng.random(ITEMS) < 0.7
    question: dict[str, Any] = {"beam": 64, "eligibility": Eligibility(shown), "log_prior": LogPrior(trie, values)}
    plain = build_decoder(model, trie, prior=prior).decode(HISTORIES, k=ITEMS, beam=64, eligibility=Eligibility())
    decoder = build_decoder(model, trie, name="fused", prior=prior, fusion=fusion(dense, weight, ITEMS))
    for history, found, ranked in zip(
        HISTORIES, plain.ranked, decoder.decode(HISTORIES, k=5, **question).ranked, strict=True
    ):
        scores = np.empty(ITEMS)
        scores[found.items] = found.scores
        total = scores + values + weight * np.log(s_of(dense, history) + FLOOR)
        assert ranked.items.tolist() == np.argsort(np.where(shown, -total, np.inf), kind="stable")[:5].tolist()
        np.testing.assert_allclose(ranked.scores, total[ranked.items], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("beam", [1, 4, 64])
@pytest.mark.parametrize("shape", ["compact", "token"])
def test_without_weight_it_is_the_inner_decoder(shape: str, beam: int) -> None:
    model, trie, prior = built(4, shape)
    question: dict[str, Any] = {"k": 7, "beam": beam, "eligibility": Eligibility(excluded=HISTORIES)}
    inner = build_decoder(model, trie, name="nezha", prior=prior).decode(HISTORIES, **question)
    outer = build_decoder(model, trie, name="fused", prior=prior, fusion=fusion(similarity(4), 0.0, 20)).decode(
        HISTORIES, **question
    )
    assert outer.spent == inner.spent
    for one, other in zip(inner.ranked, outer.ranked, strict=True):
        assert one.items.tolist() == other.items.tolist()
        assert one.scores.tolist() == other.scores.tolist()


@given(seed=st.integers(0, 1000), k=st.integers(1, ITEMS))
def test_ranking_without_weight_changes_nothing(seed: int, k: int) -> None:
    model, trie, prior = built(seed % 20)
    found = build_decoder(model, trie, prior=prior).decode(HISTORIES, k=ITEMS, beam=64, eligibility=Eligibility())
    reranker = Reranker(trie, prior)
    for ranked in found.ranked:
        same = reranker.rank(ranked, 0.0 * np.random.default_rng(seed).random(ITEMS), k=k)
        assert same.items.tolist() == ranked.items[:k].tolist()
        assert same.scores.tolist() == ranked.scores[:k].tolist()


def test_ties_go_to_semantic_id_prior_and_index_and_added_items_stand_behind() -> None:
    codes = np.array([[2], [0], [1], [1], [1], [0]], np.int32)
    reranker = Reranker(SidTrie.build(codes, (3,)), np.array([9, 1, 1, 5, 1, 1]))
    found = Ranked(np.array([7, 0, 4, 6, 2, 3, 5, 1], np.int32), np.linspace(-1, -8, 8).astype(np.float32))
    # what makes up for every difference of the scores; float32 rounds the rest away
    ranked = reranker.rank(found, np.linspace(0, 7, 8) + 1e-9, k=8)
    assert np.ptp(ranked.scores) < 1e-5
    equal = reranker.rank(Ranked(found.items, np.zeros(8)), 2.0, k=8)
    assert equal.items.tolist() == [1, 5, 3, 2, 4, 0, 6, 7]


def test_added_items_are_ranked_with_a_score_of_nothing_and_removed_ones_never() -> None:
    model, trie, prior = built(6)
    catalogue = LiveCatalogue(trie)
    segments = Segments(trie, catalogue=catalogue)
    added = catalogue.add(np.array([[0, 0, 0], [1, 2, 3]]))
    gone = np.array([3, 11, 20])
    catalogue.remove(gone)
    dense, eligibility = similarity(6), segments.eligibility([])
    inner = build_decoder(model, trie, prior=prior).decode(HISTORIES, k=50, beam=64, eligibility=eligibility)
    outer = build_decoder(model, trie, name="fused", prior=prior, fusion=fusion(dense, 2.0, 50)).decode(
        HISTORIES, k=50, beam=64, eligibility=eligibility
    )
    for found, ranked in zip(inner.ranked, outer.ranked, strict=True):
        assert sorted(ranked.items.tolist()) == sorted(found.items.tolist())
        assert not set(ranked.items.tolist()) & set(gone.tolist())
        before = dict(zip(found.items.tolist(), found.scores.tolist(), strict=True))
        after = dict(zip(ranked.items.tolist(), ranked.scores.tolist(), strict=True))
        for item in added.tolist():
            assert after[item] == pytest.approx(before[item] + 2.0 * math.log(FLOOR))


def test_a_history_that_only_the_table_reads_is_checked_too() -> None:
    model, trie, _ = built(1)
    whole = fusion(similarity(1), 1.0, 10)
    wide = Fusion(whole.neighbours, weight=1.0, floor=FLOOR, decay=DECAY, max_history=999, candidates=10)
    decoder = build_decoder(model, trie, name="fused", fusion=wide)
    history = np.concatenate([[ITEMS], np.zeros(model.config.max_history, np.int64)])
    with pytest.raises(InputError, match=r"0\.\.29"):
        decoder.decode([history], k=3, beam=5, eligibility=Eligibility())


def test_added_items_of_a_history_have_no_row_in_the_table() -> None:
    model, trie, _ = built(1)
    dense = similarity(1)
    inner = build_decoder(model, trie, name="nezha")
    decoder = FusedDecoder(inner, fusion(dense, 2.0, ITEMS), trie)
    assert decoder.add_items(np.array([[0, 0, 0]], dtype=np.int32), np.ones((1, 3), dtype=np.float32))
    history = np.array([ITEMS, 3, ITEMS, 4, ITEMS])
    question: dict[str, Any] = {"k": ITEMS, "beam": ITEMS, "eligibility": Eligibility()}
    found = inner.decode([history], **question).ranked[0]
    ranked = decoder.decode([history], **question).ranked[0]
    s = s_of(dense, np.array([3, 4]))
    expected = dict(zip(found.items.tolist(), found.scores + 2.0 * np.log(s[found.items] + FLOOR), strict=True))
    assert dict(zip(ranked.items.tolist(), ranked.scores.tolist(), strict=True)) == pytest.approx(expected)


@pytest.mark.parametrize(("field", "value"), [("k", 0), ("beam", 0)])
def test_requests_are_checked_before_they_are_widened(field: str, value: int) -> None:
    model, trie, _ = built(1)
    decoder: Decoder = build_decoder(model, trie, name="fused", fusion=fusion(similarity(1), 1.0, 10))
    question: dict[str, Any] = {"k": 3, "beam": 5, "eligibility": Eligibility(), field: value}
    with pytest.raises(InputError) as raised:
        decoder.decode(HISTORIES, **question)
    assert raised.value.field == field


def test_what_cannot_be_fused_is_refused() -> None:
    model, trie, _ = built(1)
    with pytest.raises(ConfigError, match="windfire train fusion"):
        build_decoder(model, trie, name="fused")
    flat, flat_trie, _ = built(1, "flat")
    with pytest.raises(ConfigError, match="no such decoder"):
        build_decoder(flat, flat_trie, name="fused", fusion=fusion(similarity(1), 1.0, 10))
    with pytest.raises(ConfigError, match="must have 30 rows"):
        FusedDecoder(build_decoder(model, trie), fusion(similarity(1)[:29, :29], 1.0, 10), trie)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weight", -0.1), ("weight", math.nan), ("weight", math.inf), ("floor", 0.0), ("floor", math.nan),
        ("decay", 0.0), ("decay", 1.1), ("max_history", 0), ("candidates", 0),
    ],
)  # fmt: skip
def test_numbers_out_of_range(field: str, value: float) -> None:
    numbers: dict[str, Any] = {"weight": 1.0, "floor": FLOOR, "decay": 1.0, "max_history": 1, "candidates": 1}
    table = fusion(similarity(0), 1.0, 1).neighbours
    assert Fusion(table, **numbers).weight == 1.0
    with pytest.raises(ConfigError) as raised:
        Fusion(table, **(numbers | {field: value}))
    assert raised.value.field == field
