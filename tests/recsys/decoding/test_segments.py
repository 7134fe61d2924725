"""Named sets of items against counting anew, and inside the decoders while they change."""

from __future__ import annotations

from itertools import chain, combinations
from threading import Event, Thread

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.decoding.building import build_decoder
from recsys.decoding.eligibility import Eligibility, EligibilityIndex
from recsys.decoding.nezha import NezhaDecoder
from recsys.decoding.packed import bits_of
from recsys.decoding.segments import Segments
from recsys.decoding.trie import SidTrie
from recsys.errors import InputError
from recsys.models import CompactRecommender, ItemFeatures, RecommenderConfig, build_model

ITEMS, SIZES = 40, (3, 4, 5)
NAMES = ("campaign", "scene", "stock")
HISTORIES = [np.array([3, 7, 9], np.int32), np.array([], np.int32)]

items = st.lists(st.integers(0, ITEMS - 1), max_size=8).map(lambda found: np.array(found, dtype=np.int64))
changes = st.lists(st.tuples(st.sampled_from(NAMES), items, items), max_size=12)


def catalogue(seed: int) -> np.ndarray:
    """Some items share a semantic ID."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(size, size=ITEMS) for size in SIZES], axis=1)


def filled(trie: SidTrie, seed: int, keep: int = 64) -> tuple[Segments, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    segments, members = Segments(trie, keep=keep), {name: rng.random(ITEMS) < 0.7 for name in NAMES}
    for name, mask in members.items():
        segments.put(name, mask)
    return segments, members


def every_choice() -> list[tuple[str, ...]]:
    return list(chain.from_iterable(combinations(NAMES, size) for size in range(1, len(NAMES) + 1)))


@given(seed=st.integers(0, 10_000), steps=changes, keep=st.integers(1, 8))
def test_every_intersection_stays_what_counting_anew_gives(
    seed: int, steps: list[tuple[str, np.ndarray, np.ndarray]], keep: int
) -> None:
    trie = SidTrie.build(catalogue(seed), SIZES)
    segments, members = filled(trie, seed, keep)
    index = EligibilityIndex(trie)
    for name, add, remove in steps:
        members[name][add] = True
        members[name][remove] = False
        before = segments.version(name)
        assert segments.change(name, add=add, remove=remove) == before + 1
        for names in every_choice():
            live = segments.live(names)
            fresh = index.count(np.logical_and.reduce([members[one] for one in names]))
            np.testing.assert_array_equal(live.shared, fresh.shared)
            assert live.total == fresh.total
            np.testing.assert_equal(live.counts, fresh.counts)
            np.testing.assert_equal(live.alive, fresh.alive)


def model(seed: int) -> tuple[CompactRecommender, SidTrie]:
    codes = catalogue(seed).astype(np.int32)
    nothing = np.zeros((ITEMS, 0), np.float32)
    torch.manual_seed(seed)
    config = RecommenderConfig(SIZES, ITEMS, 0, 0, d_model=16, layers=1, heads=2)
    built = build_model(config, ItemFeatures(codes, nothing, nothing, np.ones(ITEMS, np.int64))).double().eval()
    assert isinstance(built, CompactRecommender)
    return built, SidTrie.build(codes, SIZES)


@pytest.mark.parametrize("batched", [True, False])
@settings(max_examples=15)
@given(seed=st.integers(0, 1000), steps=changes, beam=st.integers(1, 12), k=st.integers(1, 12))
def test_decoders_answer_as_with_a_bitset(
    batched: bool, seed: int, steps: list[tuple[str, np.ndarray, np.ndarray]], beam: int, k: int
) -> None:
    built, trie = model(seed)
    segments, members = filled(trie, seed)
    decoder = NezhaDecoder(built, trie, batched=batched)
    excluded = [np.array([1, 5]), np.array([], dtype=np.int64)]
    for name, add, remove in steps:
        members[name][add] = True
        members[name][remove] = False
        segments.change(name, add=add, remove=remove)
        shared = members["scene"] & members["stock"]
        named = segments.eligibility(["stock", "scene"], excluded)
        found = decoder.decode(HISTORIES, k=k, beam=beam, eligibility=named).ranked
        wanted = decoder.decode(HISTORIES, k=k, beam=beam, eligibility=Eligibility(shared, excluded)).ranked
        assert [one.items.tolist() for one in found] == [one.items.tolist() for one in wanted]


def test_no_name_means_every_item() -> None:
    built, trie = model(0)
    eligibility = Segments(trie).eligibility([])
    answer = build_decoder(built, trie).decode(HISTORIES, k=ITEMS, beam=99, eligibility=eligibility)
    assert [len(one.items) for one in answer.ranked] == [ITEMS, ITEMS]


def test_what_changes_while_a_decoder_reads_is_never_shown_wrongly() -> None:
    """One half of the items comes and goes; others are gone for good, or excluded by the request."""
    built, trie = model(3)
    segments, members = filled(trie, 3)
    members["stock"][:] = True
    segments.put("stock", members["stock"])
    moving, gone = np.arange(0, ITEMS, 2), np.array([1, 7, 13])
    segments.change("stock", remove=gone)
    decoder, stop = build_decoder(built, trie), Event()
    names, seen = ("scene", "stock"), np.array([2, 3, 4, 6, 8], dtype=np.int32)
    segments.live(names)

    def churn() -> None:
        rng = np.random.default_rng(0)
        while not stop.is_set():
            segments.change("stock", add=rng.choice(moving, 5), remove=rng.choice(moving, 5))

    writer = Thread(target=churn)
    writer.start()
    shown: set[int] = set()
    lengths: list[int] = []
    for _ in range(300):
        eligibility = segments.eligibility(names, [seen, seen])
        for ranked in decoder.decode(HISTORIES, k=ITEMS, beam=99, eligibility=eligibility).ranked:
            shown.update(ranked.items.tolist())
            lengths.append(len(ranked.items) - len(set(ranked.items.tolist())))
    stop.set()
    writer.join()
    assert segments.version("stock") > 10
    assert not any(lengths)
    assert not shown & (set(gone.tolist()) | set(seen.tolist()) | set(np.flatnonzero(~members["scene"]).tolist()))
    assert shown >= set(np.flatnonzero(members["scene"]).tolist()) - set(gone.tolist()) - set(seen.tolist()) - set(
        moving.tolist()
    )


def test_a_set_can_be_replaced_and_dropped() -> None:
    trie = SidTrie.build(catalogue(1), SIZES)
    segments, members = filled(trie, 1)
    before = segments.live(["scene"]).total
    assert segments.put("scene", ~members["scene"]) == 2
    assert segments.live(["scene"]).total == ITEMS - before
    segments.drop("scene")
    assert segments.names == ["campaign", "stock"]
    with pytest.raises(InputError, match="scene") as caught:
        segments.live(["stock", "scene"])
    assert "stock" in str(caught.value.remedy)


def test_the_members_that_were_put_are_the_segments_own() -> None:
    trie = SidTrie.build(catalogue(1), SIZES)
    segments, members = filled(trie, 1)
    before = segments.live(["stock", "scene"]).total
    members["stock"][:] = False
    segments.change("scene", add=np.array([0]))
    assert segments.live(["stock", "scene"]).total in {before, before + 1}


@pytest.mark.parametrize("bad", [[-1], [0, ITEMS]])
def test_an_index_outside_the_catalogue_changes_nothing(bad: list[int]) -> None:
    trie = SidTrie.build(catalogue(2), SIZES)
    segments, members = filled(trie, 2)
    with pytest.raises(InputError, match=r"stock.*0\.\.39|0\.\.39.*stock"):
        segments.change("stock", add=np.flatnonzero(~members["stock"]), remove=np.array(bad))
    assert segments.version("stock") == 1
    np.testing.assert_array_equal(segments.live(["stock"]).shared, bits_of(members["stock"]))


@pytest.mark.parametrize("bad", [np.ones(ITEMS - 1, bool), np.ones(ITEMS, np.int8)])
def test_members_must_be_a_bitset_of_the_catalogue(bad: np.ndarray) -> None:
    with pytest.raises(InputError, match="stock"):
        Segments(SidTrie.build(catalogue(2), SIZES)).put("stock", bad)
