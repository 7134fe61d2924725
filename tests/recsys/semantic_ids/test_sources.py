from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.models.smec import Compressor, CompressorConfig
from recsys.semantic_ids.fusion import fuse, unit_length
from recsys.semantic_ids.settings import SemanticIdSettings
from recsys.semantic_ids.sources import EmbeddingSource, Shortening, fit_ridge, fit_source


def items(seed: int, count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Text, and collaboration that is linear in it with noise; two items without text, three without interactions."""
    rng = np.random.default_rng(seed)
    text = unit_length(rng.standard_normal((count, 6)).astype("f4"))
    other = unit_length((text @ rng.standard_normal((6, 4)) + 0.3 * rng.standard_normal((count, 4))).astype("f4"))
    text[[0, 1]] = 0
    other[[1, 2, 3]] = 0
    return text, other


def source_of(text: np.ndarray, other: np.ndarray, **changes: object) -> EmbeddingSource:
    return fit_source(SemanticIdSettings.model_validate(changes), text, other)[0]


@pytest.mark.parametrize(("source", "fill"), [("fused", "predicted"), ("text", "zero"), ("collaborative", "zero")])
def test_collaboration_is_guessed_unless_said_otherwise_where_text_stands_beside_it(source: str, fill: str) -> None:
    assert SemanticIdSettings.model_validate({"source": source}).fill == fill


def test_without_a_guess_the_source_is_the_fusion_it_always_was() -> None:
    text, other = items(0)
    source = source_of(text, other, fill="zero")
    np.testing.assert_array_equal(source.embed(text, other), fuse(text, other, collaborative_weight=0.5))
    assert source.state() == {}
    assert source.dimension == 10


@pytest.mark.parametrize(("name", "kept"), [("text", 0), ("collaborative", 1)])
def test_one_part_alone_is_its_unit_vectors(name: str, kept: int) -> None:
    parts = items(0)
    source = source_of(*parts, source=name)
    np.testing.assert_array_equal(source.embed(*parts), unit_length(parts[kept]))
    assert source.dimension == parts[kept].shape[1]


@given(st.integers(0, 1000), st.floats(0.01, 10))
def test_the_cosine_is_that_of_fits_without_the_item(seed: int, penalty: float) -> None:
    text, other = items(seed, 12)
    fit = fit_ridge(text, other, penalty=penalty)
    assert fit is not None
    both = np.arange(4, 12)
    cosines = []
    for item in both:
        rest = both[both != item]
        x, y = text[rest].astype(np.float64), other[rest].astype(np.float64)
        # the bias as a column of its own, not penalised
        full = np.c_[x, np.ones(len(x))]
        weight = np.linalg.solve(full.T @ full + np.diag([penalty] * 6 + [0.0]), full.T @ y)
        guess, true = np.r_[text[item], 1] @ weight, other[item]
        cosines.append(guess @ true / np.linalg.norm(guess) / np.linalg.norm(true))
    assert fit.items == 8
    assert fit.cosine == pytest.approx(np.mean(cosines), abs=1e-5)


def test_only_items_with_text_and_without_interactions_are_filled() -> None:
    text, other = items(3)
    zero = source_of(text, other, source="collaborative").embed(text, other)
    filled = source_of(text, other, source="collaborative", fill="predicted").embed(text, other)
    assert np.flatnonzero((zero != filled).any(axis=1)).tolist() == [2, 3]
    np.testing.assert_allclose(np.linalg.norm(filled[2:4], axis=1), 1, rtol=1e-5)
    assert not filled[1].any()


def test_a_linear_relation_is_found() -> None:
    rng = np.random.default_rng(0)
    text = unit_length(rng.standard_normal((60, 6)).astype("f4"))
    other = unit_length((text @ rng.standard_normal((6, 4))).astype("f4"))
    known = other.copy()
    known[:5] = 0
    found = source_of(text, known, source="collaborative", fill="predicted", ridge=1e-3).embed(text, known)
    assert ((found[:5] * other[:5]).sum(1) > 0.9).all()


def test_a_later_item_is_embedded_as_one_without_interactions() -> None:
    text, other = items(4)
    for changes in ({}, {"fill": "zero"}, {"source": "collaborative", "fill": "predicted"}, {"source": "text"}):
        source = source_of(text, other, **changes)
        np.testing.assert_array_equal(source.embed(text), source.embed(text, np.zeros_like(other)))


def test_the_state_brings_the_same_source_back() -> None:
    text, other = items(5)
    settings = SemanticIdSettings(fill="predicted", collaborative_weight=0.3)
    source, _ = fit_source(settings, text, other)
    again = EmbeddingSource.from_state(settings, source.state(), dimension=10)
    np.testing.assert_array_equal(again.embed(text), source.embed(text))


def test_text_is_made_shorter_before_all_else() -> None:
    text, other = items(7)
    model = Compressor(CompressorConfig(6, 1), torch.linalg.qr(torch.randn(6, 6)).Q)
    with torch.no_grad():
        model.stage(0).bias.fill_(0.3)
    short = Shortening(*(part.numpy() for part in model.fold(3)))
    reduced = model.reduce(text, 3)
    np.testing.assert_allclose(short.apply(text), reduced, atol=1e-6)
    for changes in ({}, {"fill": "zero"}, {"source": "collaborative", "fill": "predicted"}, {"source": "text"}):
        settings = SemanticIdSettings.model_validate(changes)
        source, _ = fit_source(settings, text, other, short)
        plain, _ = fit_source(settings, reduced, other)
        np.testing.assert_allclose(source.embed(text, other), plain.embed(reduced, other), atol=1e-5)
        np.testing.assert_allclose(source.embed(text), plain.embed(reduced), atol=1e-5)
        assert source.dimension == plain.dimension
        again = EmbeddingSource.from_state(settings, source.state(), dimension=source.dimension)
        np.testing.assert_array_equal(again.embed(text), source.embed(text))


def test_nothing_to_learn_from_leaves_zeros() -> None:
    text, other = items(6)
    source, fit = fit_source(SemanticIdSettings(fill="predicted"), text, np.zeros_like(other))
    assert fit is None
    np.testing.assert_array_equal(source.embed(text), fuse(text, np.zeros_like(other), collaborative_weight=0.5))
