from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from recsys.errors import DataError, VersionMismatchError
from recsys.semantic_ids.product import ProductCodes, fit_product
from recsys.semantic_ids.rq_vae import RqVae, apply_layers
from recsys.semantic_ids.rq_vae_training import rotated, straight_through
from recsys.semantic_ids.settings import Kind, ProductSettings, RqVaeSettings, TokenizerSettings
from recsys.semantic_ids.tokenizer import Tokenizer, fit_tokenizer, tokenizer_from_state

KINDS: tuple[Kind, ...] = ("residual_kmeans", "rq_vae", "product")
SMALL = RqVaeSettings(hidden=24, latent=6, steps=150, batch=64, learning_rate=5e-3)


def clustered(count: int, dimension: int = 10, seed: int = 0) -> np.ndarray:
    """Vectors around a few centres, with a mean and a scale of their own."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((12, dimension))
    return (5 + centres[rng.integers(12, size=count)] + 0.2 * rng.standard_normal((count, dimension))).astype("f4")


def chosen(kind: Kind, sizes: tuple[int, ...] = (8, 6, 16), rq_vae: RqVaeSettings = SMALL) -> TokenizerSettings:
    return TokenizerSettings(kind=kind, codebook_sizes=sizes, iterations=6, rq_vae=rq_vae)


def unexplained(tokenizer: Tokenizer, vectors: np.ndarray) -> float:
    codes, _ = tokenizer.encode(vectors)
    return float(((vectors - tokenizer.reconstruct(codes)) ** 2).sum() / ((vectors - vectors.mean(0)) ** 2).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_in_range_and_the_reconstruction_explains_the_vectors(kind: Kind) -> None:
    vectors = clustered(400)
    tokenizer = fit_tokenizer(vectors, chosen(kind), seed=3)
    codes, residuals = tokenizer.encode(vectors)
    assert (tokenizer.kind, tokenizer.sizes, tokenizer.dimension) == (kind, (8, 6, 16), 10)
    assert codes.dtype == np.int32
    assert ((codes >= 0) & (codes < tokenizer.sizes)).all()
    assert unexplained(tokenizer, vectors) < 0.35
    # the last code is the row of the last codebook that is nearest to what it has to stand for
    distance = ((residuals[:, None] - tokenizer.centroids[-1]) ** 2).sum(2)
    np.testing.assert_allclose(distance[np.arange(400), codes[:, -1]], distance.min(1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_brings_the_same_tokenizer_back(kind: Kind) -> None:
    vectors = clustered(120)
    tokenizer = fit_tokenizer(vectors, chosen(kind), seed=1)
    again = tokenizer_from_state(kind, {**tokenizer.state(), "source_weight": vectors})
    codes, _ = tokenizer.encode(vectors)
    assert type(again) is type(tokenizer)
    np.testing.assert_array_equal(again.encode(vectors)[0], codes)
    np.testing.assert_array_equal(again.reconstruct(codes), tokenizer.reconstruct(codes))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bits_whatever_the_global_generators_are(kind: Kind) -> None:
    vectors = clustered(120)
    first = fit_tokenizer(vectors, chosen(kind), seed=4)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        second = fit_tokenizer(vectors, chosen(kind), seed=4)
    other = fit_tokenizer(vectors, chosen(kind), seed=5)
    assert all((a == b).all() for a, b in zip(first.state().values(), second.state().values(), strict=True))
    assert any((a != b).any() for a, b in zip(first.state().values(), other.state().values(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_relabelling_renames_codes_and_changes_nothing_else(kind: Kind) -> None:
    vectors = clustered(150)
    tokenizer = fit_tokenizer(vectors, chosen(kind), seed=0)
    rng = np.random.default_rng(1)
    order = [rng.permutation(size) for size in tokenizer.sizes]
    renamed = tokenizer.relabelled(order)
    codes, _ = tokenizer.encode(vectors)
    new, _ = renamed.encode(vectors)
    np.testing.assert_array_equal(np.stack([order[level][new[:, level]] for level in range(3)], axis=1), codes)
    np.testing.assert_allclose(renamed.reconstruct(new), tokenizer.reconstruct(codes), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_items_than_codes_still_encode(kind: Kind) -> None:
    vectors = clustered(3)
    tokenizer = fit_tokenizer(vectors, chosen(kind, (8, 8, 8)), seed=0)
    assert tokenizer.encode(vectors)[0].shape == (3, 3)
    assert all(np.isfinite(values).all() for values in tokenizer.state().values())


@pytest.mark.parametrize("kind", KINDS)
def test_equal_vectors_get_equal_codes(kind: Kind) -> None:
    tokenizer = fit_tokenizer(np.ones((40, 5), np.float32), chosen(kind, (4, 4)), seed=0)
    assert len(np.unique(tokenizer.encode(np.ones((3, 5), np.float32))[0], axis=0)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_warm_start_without_a_step_stays_near_the_earlier_codes(kind: Kind) -> None:
    vectors = clustered(300)
    still = chosen(kind, rq_vae=SMALL.model_copy(update={"steps": 0})).model_copy(update={"iterations": 1})
    earlier = fit_tokenizer(vectors, chosen(kind), seed=1)
    later = fit_tokenizer(vectors[:280], still, seed=2, warm=earlier)
    cold = fit_tokenizer(vectors[:280], still, seed=2)
    before = earlier.encode(vectors)[0][:, 0]
    assert (later.encode(vectors)[0][:, 0] == before).mean() > 0.95
    assert (cold.encode(vectors)[0][:, 0] == before).mean() < 0.7


def test_a_warm_start_of_another_shape_is_refused() -> None:
    earlier = fit_tokenizer(clustered(50), chosen("residual_kmeans"), seed=0)
    for settings in (chosen("product"), chosen("residual_kmeans", (8, 8, 8))):
        with pytest.raises(VersionMismatchError, match="earlier tokenizer"):
            fit_tokenizer(clustered(50), settings, seed=0, warm=earlier)
    with pytest.raises(VersionMismatchError, match="dimension"):
        fit_tokenizer(clustered(50, 4), chosen("residual_kmeans"), seed=0, warm=earlier)


def test_unfit_vectors_are_a_clear_error() -> None:
    with pytest.raises(DataError, match="no item"):
        fit_tokenizer(np.zeros((0, 4), np.float32), chosen("rq_vae"), seed=0)
    with pytest.raises(DataError, match="finite"):
        fit_tokenizer(np.full((4, 4), np.nan, np.float32), chosen("rq_vae"), seed=0)


def test_an_incomplete_state_is_a_clear_error() -> None:
    state = fit_tokenizer(clustered(50), chosen("product"), seed=0).state()
    del state["rotation"]
    with pytest.raises(DataError, match="rotation"):
        tokenizer_from_state("product", state)


def test_the_rq_vae_learns() -> None:
    vectors = clustered(400)
    steps = [0, 200]
    errors = [
        unexplained(
            fit_tokenizer(vectors, chosen("rq_vae", rq_vae=SMALL.model_copy(update={"steps": n})), seed=2), vectors
        )
        for n in steps
    ]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_both_gradients_learn(gradient: str) -> None:
    vectors = clustered(300)
    settings = RqVaeSettings.model_validate(SMALL.model_dump() | {"gradient": gradient, "steps": 200})
    assert unexplained(fit_tokenizer(vectors, chosen("rq_vae", rq_vae=settings), seed=2), vectors) < 0.3


def test_a_training_that_runs_away_says_so() -> None:
    wild = SMALL.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(DataError, match="learning_rate"):
        fit_tokenizer(clustered(50), chosen("rq_vae", rq_vae=wild), seed=0)


def test_dead_codes_are_revived() -> None:
    # One code far from everything: only revival can bring it back into use.
    vectors = clustered(300)
    start = fit_tokenizer(vectors, chosen("rq_vae", (8,)), seed=0)
    assert isinstance(start, RqVae)
    far = RqVae(start.encoder, start.decoder, start.books)
    far.books.centroids[0][1:] = 1e4
    used = []
    for share in (0.0, 0.5):
        settings = SMALL.model_copy(update={"revive_below": share, "revive_every": 10, "decay": 0.8})
        found = fit_tokenizer(vectors, chosen("rq_vae", (8,), settings), seed=0, warm=far)
        used.append(len(np.unique(found.encode(vectors)[0])))
    assert used[0] == 1
    assert used[1] >= 6


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_the_rotation_trick_keeps_the_value_and_turns_the_gradient(seed: int, dimension: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(4, dimension, generator=generator, dtype=torch.float64).requires_grad_()
    quantised, gradient = torch.randn(2, 4, dimension, generator=generator, dtype=torch.float64)
    close = latent.detach() + 0.3 * quantised
    out = rotated(latent, close)
    torch.testing.assert_close(out, close, rtol=1e-6, atol=1e-6)
    (found,) = torch.autograd.grad(out, latent, gradient)
    # The angle between gradient and vector is the same on both sides, and lengths scale alike.
    scale = close.norm(dim=1) / latent.norm(dim=1)
    torch.testing.assert_close((found * latent).sum(1), (gradient * close).sum(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.norm(dim=1), gradient.norm(dim=1) * scale, rtol=1e-6, atol=1e-6)


def test_straight_through_hands_the_gradient_on() -> None:
    latent, quantised = torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3)
    out = straight_through(latent, quantised)
    (found,) = torch.autograd.grad(out.sum(), latent)
    assert (out.detach() == 1).all()
    assert (found == 1).all()


def test_layers_are_affine_with_relu_between() -> None:
    first = (np.array([[1.0], [-1.0]], "f4"), np.array([0.0, 1.0], "f4"))
    second = (np.array([[1.0, 2.0]], "f4"), np.array([3.0], "f4"))
    assert apply_layers((first, second), np.array([[2.0], [-2.0]], "f4")).tolist() == [[5.0], [9.0]]


@hypothesis_settings(max_examples=10)
@given(st.integers(2, 9), st.integers(1, 3), st.integers(0, 100))
def test_a_product_rotation_is_orthonormal(dimension: int, levels: int, seed: int) -> None:
    fitted = fit_product(clustered(60, dimension, seed), (4,) * levels, rounds=2, iterations=3, seed=seed)
    np.testing.assert_allclose(fitted.rotation @ fitted.rotation.T, np.eye(dimension), atol=1e-4)


def test_a_rotation_pays_where_the_blocks_are_correlated() -> None:
    rng = np.random.default_rng(0)
    narrow = rng.standard_normal((500, 3)) @ rng.standard_normal((3, 12))
    vectors = (narrow + 0.05 * rng.standard_normal((500, 12))).astype("f4")
    errors = [
        unexplained(
            fit_tokenizer(
                vectors,
                chosen("product", (16, 16, 16)).model_copy(update={"product": ProductSettings(rounds=n)}),
                seed=0,
            ),
            vectors,
        )
        for n in (0, 8)
    ]
    assert errors[1] < 0.8 * errors[0]


def test_without_rounds_a_block_is_a_slice_of_the_vector() -> None:
    vectors = clustered(100, 6)
    fitted = fit_product(vectors, (5, 5), rounds=0, iterations=4, seed=0)
    assert isinstance(fitted, ProductCodes)
    expected = [
        ((vectors[:, None, at : at + 3] - rows) ** 2).sum(2).argmin(1)
        for at, rows in zip((0, 3), fitted.centroids, strict=True)
    ]
    np.testing.assert_array_equal(fitted.encode(vectors)[0], np.stack(expected, axis=1))
