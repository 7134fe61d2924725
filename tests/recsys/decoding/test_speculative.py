"""`speculative` answers as `beam`, whatever the draft held."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.decoding.beam import BeamDecoder
from recsys.decoding.decoder import DecodeResult
from recsys.decoding.eligibility import Eligibility
from recsys.decoding.speculative import SpeculativeDecoder
from recsys.decoding.trie import SidTrie
from recsys.models import ItemFeatures, RecommenderConfig, TokenRecommender

if TYPE_CHECKING:
    import numpy.typing as npt


class Case(NamedTuple):
    """A model over a random catalogue, and requests."""

    model: TokenRecommender
    trie: SidTrie
    histories: list[npt.NDArray[np.int32]]
    eligibility: Eligibility


def case(seed: int, sizes: tuple[int, ...], *, requests: int = 2, placeholders: bool = True) -> Case:
    rng = np.random.default_rng(seed)
    items = int(rng.integers(1, 80))
    codes = np.stack([rng.integers(size, size=items) for size in sizes], axis=1).astype(np.int32)
    features = ItemFeatures(
        codes, np.zeros((items, 2), np.float32), np.zeros((items, 2), np.float32), np.ones(items, np.int64)
    )
    torch.manual_seed(seed)
    config = RecommenderConfig(
        sizes, items, 0, 0, shape="token", d_model=8, layers=1, heads=2, max_history=4, placeholders=placeholders
    )
    model = TokenRecommender(config, features).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    histories = [rng.integers(items, size=rng.integers(0, 7)).astype(np.int32) for _ in range(requests)]
    shared = rng.random(items) < 0.7
    excluded = [rng.permutation(items)[: rng.integers(0, 4)].astype(np.int32) for _ in range(requests)]
    return Case(model, SidTrie.build(codes, sizes), histories, Eligibility(shared, excluded))


def both(given: Case, *, k: int, beam: int, draft: float) -> tuple[DecodeResult, DecodeResult]:
    model, trie, histories, eligibility = given
    return (
        BeamDecoder(model, trie).decode(histories, k=k, beam=beam, eligibility=eligibility),
        SpeculativeDecoder(model, trie, draft=draft).decode(histories, k=k, beam=beam, eligibility=eligibility),
    )


@settings(max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.sampled_from([(5, 5), (4, 3, 5), (3, 3, 3, 3)]),
    beam=st.integers(1, 12),
    k=st.integers(1, 12),
    draft=st.sampled_from([0.2, 1.0, 2.0]),
    placeholders=st.booleans(),
    frozen=st.booleans(),
)
def test_every_answer_is_that_of_beam(
    seed: int, sizes: tuple[int, ...], beam: int, k: int, draft: float, placeholders: bool, frozen: bool
) -> None:
    chosen = case(seed, sizes, placeholders=placeholders)
    for prepare in [chosen.model.freeze] * frozen:
        prepare()
    exact, speculated = both(chosen, k=k, beam=beam, draft=draft)
    assert exact.spent.widened == speculated.spent.widened
    for one, other in zip(exact.ranked, speculated.ranked, strict=True):
        np.testing.assert_array_equal(other.items, one.items)
        np.testing.assert_allclose(other.scores, one.scores, rtol=1e-9)


def test_a_full_draft_saves_a_forward_per_level() -> None:
    chosen = case(3, (3, 3, 3, 3), requests=1)._replace(eligibility=Eligibility())
    exact, speculated = both(chosen, k=1, beam=2, draft=50.0)
    assert (exact.spent.forwards, speculated.spent.forwards) == (4, 2)
    assert speculated.spent.wanted == speculated.spent.drafted == (2, 2)


def test_what_was_not_drafted_is_run_afterwards() -> None:
    missed = 0
    for seed in range(20):
        exact, speculated = both(case(seed, (4, 3, 5), requests=1), k=3, beam=4, draft=0.25)
        wanted, drafted = sum(speculated.spent.wanted), sum(speculated.spent.drafted)
        assert drafted <= wanted
        assert speculated.spent.forwards <= exact.spent.forwards
        missed += wanted - drafted
    assert missed > 20


@pytest.mark.parametrize("draft", [0.5, 2.0])
def test_float32_answers_differ_by_near_ties_only(draft: float) -> None:
    for seed in range(30):
        chosen = case(seed, (4, 3, 5))
        chosen.model.float()
        exact, speculated = both(chosen, k=5, beam=6, draft=draft)
        for one, other in zip(exact.ranked, speculated.ranked, strict=True):
            np.testing.assert_allclose(other.scores, one.scores, atol=1e-4)
