"""Every decoder against the enumeration of a tiny catalogue, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.backends import choose_backbone
from recsys.decoding.building import build_decoder, decoder_names
from recsys.decoding.decoder import Decoder
from recsys.decoding.eligibility import Eligibility
from recsys.decoding.log_prior import LogPrior
from recsys.decoding.nezha import NezhaDecoder
from recsys.decoding.trie import SidTrie
from recsys.errors import ConfigError, InputError
from recsys.models import CompactRecommender, ItemFeatures, RecommenderConfig, TokenRecommender, build_model
from recsys.models.normaliser import Normaliser

ITEMS, SIZES = 30, (4, 3, 5)
WAYS = [("compact", "nezha"), ("token", "nezha"), ("token", "beam"), ("token", "speculative")]
BACKBONES: dict[str, dict[str, object]] = {
    "own": {},
    "huggingface": {"backbone": "huggingface", "backbone_config": {"num_key_value_heads": 1}},
}
CLOSE = {"own": 1e-9, "huggingface": 1e-6}  # the library's norms compute in float32
HISTORIES = [np.array([3, 7, 9], np.int32), np.array([], np.int32), np.array([1], np.int32)]


def catalogue(seed: int) -> ItemFeatures:
    """Some items share a semantic ID."""
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(size, size=ITEMS) for size in SIZES], axis=1).astype(np.int32)
    return ItemFeatures(
        codes,
        rng.standard_normal((ITEMS, 3)).astype(np.float32),
        rng.standard_normal((ITEMS, 2)).astype(np.float32),
        np.ones(ITEMS, np.int64),
    )


def built(shape: str, seed: int, **changes: object) -> tuple[CompactRecommender | TokenRecommender, SidTrie]:
    features = catalogue(seed)
    torch.manual_seed(seed)
    config = RecommenderConfig.from_dict(
        {"codebook_sizes": SIZES, "num_items": ITEMS, "text_dim": 3, "collaborative_dim": 2, "shape": shape,
         "d_model": 16, "layers": 1, "heads": 2, **changes}
    )  # fmt: skip
    model = build_model(config, features, choose_backbone).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    assert isinstance(model, CompactRecommender | TokenRecommender)
    return model, SidTrie.build(features.codes, SIZES)


def item_scores(
    model: CompactRecommender | TokenRecommender, trie: SidTrie, name: str, history: np.ndarray, whole: bool
) -> np.ndarray:
    """Log-probability of every item, one item at a time from the model's own parts."""
    items = torch.from_numpy(history.astype(np.int64))[None]
    length = torch.tensor([len(history)])
    siblings = Normaliser(trie, whole_codebook=whole)
    scores = np.zeros(ITEMS)
    with torch.inference_mode():
        for item in range(ITEMS):
            one = torch.tensor([item])
            levels = {"nezha": head_logits, "beam": backbone_logits, "speculative": backbone_logits}[name](
                model, siblings, items, length, one
            )
            scores[item] = sum(float(precise(siblings, level, logits, item)) for level, logits in enumerate(levels))
    return scores


def precise(normaliser: Normaliser, level: int, logits: torch.Tensor, item: int) -> torch.Tensor:
    """As `Normaliser.log_prob`, from the definition and in float64."""
    path = normaliser.item_node
    peers = range(ITEMS) if level == 0 else [i for i in range(ITEMS) if path[i, level - 1] == path[item, level - 1]]
    codes = sorted({int(normaliser.item_codes(level, torch.tensor([i]))) for i in peers})
    allowed = list(range(SIZES[level])) if normaliser.whole_codebook else codes
    return logits[0, int(normaliser.item_codes(level, torch.tensor([item])))] - logits[0, allowed].logsumexp(0)


def head_logits(
    model: Any, normaliser: Normaliser, items: torch.Tensor, length: torch.Tensor, one: torch.Tensor
) -> Iterator[torch.Tensor]:
    hidden = model.encode(items, length)
    state = model.head.start(hidden)
    yield model.head.logits(0, hidden, state)
    for level in (1, 2):
        state = model.head.advance(level - 1, state, normaliser.item_codes(level - 1, one))
        logits = model.head.logits(level, hidden, state)
        yield logits + own_logits(model, normaliser, level, model.head.fuse(level, hidden, state)[0], int(one))


def own_logits(model: Any, normaliser: Normaliser, level: int, fused: torch.Tensor, item: int) -> torch.Tensor:
    """By code, what the items' own rows say of the prefix that an item shares with its siblings up to `level`."""
    path, found = normaliser.item_node, torch.zeros(1, SIZES[level], dtype=fused.dtype)
    rows = model.head.item_output.weight if model.config.item_rows else torch.zeros(ITEMS, len(fused)).to(fused)
    siblings = [i for i in range(ITEMS) if path[i, level - 1] == path[item, level - 1]]
    for code in {int(normaliser.item_codes(level, torch.tensor([i]))) for i in siblings}:
        below = [i for i in siblings if int(normaliser.item_codes(level, torch.tensor([i]))) == code]
        found[0, code] = torch.stack([rows[i] @ fused for i in below]).mean()
    return found


def backbone_logits(
    model: Any, normaliser: Normaliser, items: torch.Tensor, length: torch.Tensor, one: torch.Tensor
) -> Iterator[torch.Tensor]:
    tokens = [model.start[None, None], model.embed_items(items)]
    for level in range(3):
        x = torch.cat(tokens, dim=1)
        hidden, _ = model.backbone(x, positions=torch.arange(x.shape[1])[None])
        yield model.token_logits(level, hidden[:, -1])
        tokens.append(model.embed_codes(level, normaliser.item_codes(level, one))[:, None])


def by_score(scores: np.ndarray, shown: np.ndarray, trie: SidTrie) -> list[int]:
    leaf = trie.item_node[:, -1]
    order = sorted(range(ITEMS), key=lambda item: (-round(float(scores[item]), 9), leaf[item], item))
    return [item for item in order if shown[item]]


def naive_beam(scores_of: dict[tuple[int, ...], float], width: int) -> set[tuple[int, ...]]:
    """A beam over dictionaries: prefixes and their scores in, surviving complete prefixes out."""
    kept: set[tuple[int, ...]] = {()}
    for depth in range(1, len(SIZES) + 1):
        candidates = [prefix for prefix in scores_of if len(prefix) == depth and prefix[:-1] in kept]
        kept = set(sorted(candidates, key=lambda prefix: (-scores_of[prefix], prefix))[:width])
    return kept


@pytest.mark.parametrize(("whole", "backbone"), [(False, "own"), (True, "own"), (False, "huggingface")])
@pytest.mark.parametrize(("shape", "name"), WAYS)
@settings(max_examples=6)
@given(seed=st.integers(0, 1000))
def test_full_width_equals_enumeration(shape: str, name: str, whole: bool, backbone: str, seed: int) -> None:
    model, trie = built(shape, seed, whole_codebook=whole, **BACKBONES[backbone])
    shown = np.random.default_rng(seed).random(ITEMS) < 0.7
    excluded = [np.flatnonzero(shown)[:2].astype(np.int32) for _ in HISTORIES]
    answer = build_decoder(model, trie, name=name).decode(
        HISTORIES, k=ITEMS, beam=200, eligibility=Eligibility(shared=shown, excluded=excluded)
    )
    for history, ranked, hidden in zip(HISTORIES, answer.ranked, excluded, strict=True):
        scores = item_scores(model, trie, name, history, whole)
        may = shown.copy()
        may[hidden] = False
        assert ranked.items.tolist() == by_score(scores, may, trie)
        np.testing.assert_allclose(ranked.scores, scores[ranked.items], rtol=CLOSE[backbone])


@pytest.mark.parametrize("fusion", ["add", "concat"])
@pytest.mark.parametrize("batched", [True, False])
@settings(max_examples=6)
@given(seed=st.integers(0, 1000))
def test_rows_of_items_are_scored_as_declared(fusion: str, batched: bool, seed: int) -> None:
    model, trie = built("compact", seed, item_rows=True, fusion=fusion)
    assert isinstance(model, CompactRecommender)
    answer = NezhaDecoder(model, trie, batched=batched).decode(HISTORIES, k=ITEMS, beam=200, eligibility=Eligibility())
    for history, ranked in zip(HISTORIES, answer.ranked, strict=True):
        scores = item_scores(model, trie, "nezha", history, whole=False)
        assert ranked.items.tolist() == by_score(scores, np.ones(ITEMS, bool), trie)
        np.testing.assert_allclose(ranked.scores, scores[ranked.items], rtol=1e-9)


@pytest.mark.parametrize(("shape", "name"), WAYS)
@settings(max_examples=8)
@given(seed=st.integers(0, 1000), width=st.integers(1, 6))
def test_a_narrow_beam_equals_a_naive_one(shape: str, name: str, seed: int, width: int) -> None:
    model, trie = built(shape, seed)
    history = HISTORIES[0]
    codes = catalogue(seed).codes
    prefixes: dict[tuple[int, ...], float] = {}
    items = torch.from_numpy(history.astype(np.int64))[None]
    normaliser = Normaliser(trie)
    with torch.inference_mode():
        for item in range(ITEMS):
            levels = {"nezha": head_logits, "beam": backbone_logits, "speculative": backbone_logits}[name](
                model, normaliser, items, torch.tensor([len(history)]), torch.tensor([item])
            )
            total = 0.0
            for level, logits in enumerate(levels):
                total += float(precise(normaliser, level, logits, item))
                prefixes[tuple(codes[item, : level + 1].tolist())] = total
    expected = naive_beam(prefixes, width)
    answer = build_decoder(model, trie, name=name).decode(
        [history], k=1, beam=width, eligibility=Eligibility(shared=None, excluded=None)
    )
    best = max(expected, key=lambda prefix: prefixes[prefix])
    assert tuple(codes[answer.ranked[0].items[0]].tolist()) == best
    assert float(answer.ranked[0].scores[0]) == pytest.approx(prefixes[best], rel=1e-9)


@pytest.mark.parametrize(("shape", "name"), WAYS)
@settings(max_examples=6)
@given(seed=st.integers(0, 1000))
def test_a_log_prior_is_added_to_every_items_score(shape: str, name: str, seed: int) -> None:
    model, trie = built(shape, seed)
    rng = np.random.default_rng(seed)
    values, shown = rng.normal(scale=3.0, size=ITEMS), rng.random(ITEMS) < 0.7
    answer = build_decoder(model, trie, name=name).decode(
        HISTORIES, k=ITEMS, beam=200, eligibility=Eligibility(shown), log_prior=LogPrior(trie, values)
    )
    for history, ranked in zip(HISTORIES, answer.ranked, strict=True):
        scores = item_scores(model, trie, name, history, whole=False) + values
        assert ranked.items.tolist() == by_score(scores, shown, trie)
        np.testing.assert_allclose(ranked.scores, scores[ranked.items], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("shape", "name"), [*WAYS, ("compact", "batched"), ("flat", "flat")])
@settings(max_examples=8)
@given(seed=st.integers(0, 1000), width=st.integers(1, 6), item=st.integers(0, ITEMS - 1))
def test_a_log_prior_lifts_and_sinks(shape: str, name: str, seed: int, width: int, item: int) -> None:
    """A beam of whatever width finds the lifted item; a sunk one comes last, and prefixes of none go first."""
    torch.manual_seed(seed)
    features = catalogue(seed)
    config = RecommenderConfig(SIZES, ITEMS, 3, 2, shape=shape, d_model=16, layers=1, heads=2)  # type: ignore[arg-type]
    trie = SidTrie.build(features.codes, SIZES)
    model = build_model(config, features).double().eval()
    decoders: dict[str, Callable[[], Decoder]] = {
        "batched": lambda: NezhaDecoder(model, trie, batched=True),  # type: ignore[arg-type]
    }
    decoder = decoders.get(name, lambda: build_decoder(model, trie, name=name))()
    pushed = np.zeros(ITEMS)
    pushed[item] = 50.0
    lifted = decoder.decode(HISTORIES, k=1, beam=width, eligibility=Eligibility(), log_prior=LogPrior(trie, pushed))
    assert [ranked.items.tolist() for ranked in lifted.ranked] == [[item]] * len(HISTORIES)
    sunk = decoder.decode(HISTORIES, k=ITEMS, beam=99, eligibility=Eligibility(), log_prior=LogPrior(trie, -pushed))
    assert [ranked.items.tolist()[-1] for ranked in sunk.ranked] == [item] * len(HISTORIES)
    plain = decoder.decode(HISTORIES, k=5, beam=width, eligibility=Eligibility())
    zero = decoder.decode(
        HISTORIES, k=5, beam=width, eligibility=Eligibility(), log_prior=LogPrior(trie, np.zeros(ITEMS))
    )
    for one, other in zip(plain.ranked, zero.ranked, strict=True):
        assert one.scores.tolist() == pytest.approx(other.scores.tolist(), abs=1e-12)


@pytest.mark.parametrize(("shape", "name"), [*WAYS, ("flat", "flat")])
@settings(max_examples=8)
@given(seed=st.integers(0, 1000), share=st.floats(0, 1), k=st.integers(1, 40), beam=st.integers(1, 40))
def test_answers_are_eligible_distinct_and_sorted(
    shape: str, name: str, seed: int, share: float, k: int, beam: int
) -> None:
    torch.manual_seed(seed)
    features = catalogue(seed)
    config = RecommenderConfig(SIZES, ITEMS, 3, 2, shape=shape, d_model=16, layers=1, heads=2)  # type: ignore[arg-type]
    decoder = build_decoder(build_model(config, features).eval(), SidTrie.build(features.codes, SIZES), name=name)
    shown = np.random.default_rng(seed).random(ITEMS) < share
    answer = decoder.decode(
        HISTORIES, k=k, beam=beam, eligibility=Eligibility(shared=shown, excluded=[h.copy() for h in HISTORIES])
    )
    for history, ranked in zip(HISTORIES, answer.ranked, strict=True):
        eligible = set(np.flatnonzero(shown).tolist()) - set(history.tolist())
        assert len(set(ranked.items.tolist())) == len(ranked.items) == min(k, len(eligible))
        assert set(ranked.items.tolist()) <= eligible
        assert all(a >= b for a, b in pairwise(ranked.scores.tolist()))


@pytest.mark.parametrize(("shape", "name"), [*WAYS, ("flat", "flat")])
def test_hiding_other_items_changes_no_score(shape: str, name: str) -> None:
    torch.manual_seed(1)
    features = catalogue(1)
    config = RecommenderConfig(SIZES, ITEMS, 3, 2, shape=shape, d_model=16, layers=1, heads=2)  # type: ignore[arg-type]
    model = build_model(config, features).double().eval()
    decoder: Decoder = build_decoder(model, SidTrie.build(features.codes, SIZES), name=name)
    everything = decoder.decode(HISTORIES, k=ITEMS, beam=99, eligibility=Eligibility(shared=None, excluded=None))
    shown = np.arange(ITEMS) % 2 == 0
    half = decoder.decode(HISTORIES, k=ITEMS, beam=99, eligibility=Eligibility(shared=shown, excluded=None))
    for before, after in zip(everything.ranked, half.ranked, strict=True):
        scores = dict(zip(before.items.tolist(), before.scores.tolist(), strict=True))
        assert [scores[item] for item in after.items.tolist()] == pytest.approx(after.scores.tolist(), rel=1e-12)


def test_a_shape_offers_its_own_decoders_only() -> None:
    model, trie = built("compact", 0)
    assert decoder_names(model) == ("nezha",)
    with pytest.raises(ConfigError, match="beam"):
        build_decoder(model, trie, name="beam")


@pytest.mark.parametrize("width", [1, 5, 7, 31])
@pytest.mark.parametrize("name", ["nezha", "batched", "beam"])
def test_at_the_cut_ties_fall_to_the_smaller_semantic_id(name: str, width: int) -> None:
    """All semantic IDs exist and all weights are 0: every score is the same."""
    every = np.stack(np.unravel_index(np.arange(60), SIZES), axis=1).astype(np.int32)
    order = np.random.default_rng(2).permutation(60)
    nothing = np.zeros((60, 0), np.float32)
    features = ItemFeatures(every[order], nothing, nothing, np.ones(60, np.int64))
    config = RecommenderConfig(SIZES, 60, 0, 0, shape="token", d_model=16, layers=1, heads=2)
    model = build_model(config, features).eval()
    assert isinstance(model, TokenRecommender)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    trie = SidTrie.build(features.codes, SIZES)
    batched = NezhaDecoder(model, trie, batched=True)
    decoder = batched if name == "batched" else build_decoder(model, trie, name=name)
    for ranked in decoder.decode(HISTORIES, k=width, beam=width, eligibility=Eligibility()).ranked:
        assert order[ranked.items].tolist() == list(range(width))


@pytest.mark.parametrize(("shape", "name"), [*WAYS, ("flat", "flat")])
@pytest.mark.parametrize("history", [[ITEMS], [3, -1], [-7]])
def test_an_item_that_is_not_in_the_catalogue_is_refused(shape: str, name: str, history: list[int]) -> None:
    features = catalogue(1)
    config = RecommenderConfig(SIZES, ITEMS, 3, 2, shape=shape, d_model=16, layers=1, heads=2)  # type: ignore[arg-type]
    decoder = build_decoder(build_model(config, features).eval(), SidTrie.build(features.codes, SIZES), name=name)
    with pytest.raises(InputError, match=r"0\.\.29"):
        decoder.decode([HISTORIES[0], np.array(history)], k=3, beam=5, eligibility=Eligibility())


@pytest.mark.parametrize(("shape", "name", "tokens"), [("compact", "nezha", 7), ("token", "nezha", 24)])
def test_what_was_spent_counts_positions(shape: str, name: str, tokens: int) -> None:
    """Histories of 3, 0 and 1 items; a start each, in the token shape 3 tokens per item and 3 placeholders."""
    model, trie = built(shape, 1)
    spent = build_decoder(model, trie, name=name).decode(HISTORIES, k=3, beam=50, eligibility=Eligibility()).spent
    assert (spent.forwards, spent.tokens) == (1, tokens)
