"""`generate` of the library with a prefix trie answers as our `beam`: the peers benchmark times the same work."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.decoding_parts.hf_generate import HfGenerateDecoder
from recsys.backends import choose_backbone
from recsys.decoding.beam import BeamDecoder
from recsys.decoding.eligibility import Eligibility
from recsys.decoding.trie import SidTrie
from recsys.errors import ConfigError, InputError
from recsys.models import ItemFeatures, RecommenderConfig, TokenRecommender

SIZES = (12, 6, 8)
ITEMS = 150


def token_model(backbone: str = "huggingface") -> TokenRecommender:
    rng = np.random.default_rng(5)
    codes = np.stack([rng.integers(size, size=ITEMS) for size in SIZES], axis=1).astype(np.int32)
    vectors = rng.standard_normal((ITEMS, 3)).astype(np.float32)
    features = ItemFeatures(codes, vectors, vectors, np.ones(ITEMS, np.int64))
    torch.manual_seed(5)
    config = RecommenderConfig.from_dict(
        {
            "codebook_sizes": SIZES, "num_items": ITEMS, "text_dim": 3, "collaborative_dim": 3, "shape": "token",
            "d_model": 16, "layers": 2, "heads": 2, "max_history": 6, "backbone": backbone,
        }
    )  # fmt: skip
    model = TokenRecommender(config, features, choose_backbone).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize(("beam", "k"), [(2, 1), (8, 8), (60, 20)])
def test_generate_answers_as_beam(beam: int, k: int) -> None:
    model = token_model()
    codes = model.input.codes.numpy().astype(np.int32)
    prior = np.random.default_rng(1).integers(5, size=ITEMS)
    rng = np.random.default_rng(2)
    histories = [rng.integers(ITEMS, size=length).astype(np.int32) for length in (3, 6, 0, 9, 1)]
    everything = Eligibility()
    ours = BeamDecoder(model, SidTrie.build(codes, SIZES), prior=prior)
    theirs = HfGenerateDecoder(model, codes, prior=prior)
    expected = ours.decode(histories, k=k, beam=beam, eligibility=everything)
    found = theirs.decode(histories, k=k, beam=beam, eligibility=everything)
    for one, other in zip(expected.ranked, found.ranked, strict=True):
        np.testing.assert_allclose(other.scores, one.scores, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(other.items, one.items)
    assert found.spent.tokens > expected.spent.tokens  # the prompt is read once per beam


def test_generate_takes_no_eligibility_and_no_other_backbone() -> None:
    model = token_model()
    codes = model.input.codes.numpy()
    decoder = HfGenerateDecoder(model, codes, prior=np.zeros(ITEMS))
    with pytest.raises(InputError, match="whole catalogue"):
        decoder.decode([codes[0]], k=1, beam=2, eligibility=Eligibility(shared=np.ones(ITEMS, dtype=bool)))
    with pytest.raises(ConfigError, match="Hugging Face"):
        HfGenerateDecoder(token_model("own"), codes, prior=np.zeros(ITEMS))
