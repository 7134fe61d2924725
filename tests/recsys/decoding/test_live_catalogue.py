"""Catalogues that change: every decoder against an enumeration over Python dictionaries, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.decoding.added import ColdPrior
from recsys.decoding.building import build_decoder
from recsys.decoding.decoder import Decoder, Ranked
from recsys.decoding.eligibility import Eligibility
from recsys.decoding.live_catalogue import LiveCatalogue, Merging
from recsys.decoding.log_prior import LogPrior
from recsys.decoding.nezha import NezhaDecoder
from recsys.decoding.segments import Segments
from recsys.decoding.trie import SidTrie
from recsys.decoding.verifier import Structure
from recsys.errors import ConfigError, InputError
from recsys.models import ItemFeatures, RecommenderConfig, build_model

ITEMS, SIZES = 24, (3, 3, 4)
HISTORY = np.array([3, 7, 9], np.int32)
NAMES = ("scene", "stock")
Prefix = tuple[int, ...]


def structured(structure: Structure) -> Callable[[Any, SidTrie], Decoder]:
    return lambda model, trie: NezhaDecoder(model, trie, structure=structure)


STRUCTURES = {structure: structured(structure) for structure in get_args(Structure)}
DECODERS: dict[str, tuple[str, Callable[[Any, SidTrie], Decoder]]] = {
    "csr": ("compact", STRUCTURES["csr"]),
    "batched": ("compact", lambda model, trie: NezhaDecoder(model, trie, batched=True)),
    "beam": ("token", lambda model, trie: build_decoder(model, trie, name="beam")),
    "speculative": ("token", lambda model, trie: build_decoder(model, trie, name="speculative")),
}

numbers = st.integers(0, 10_000)
lists = st.lists(numbers, max_size=4)
steps = st.lists(
    st.tuples(st.sampled_from(["add", "add", "remove", "restore", "scene", "stock", "merge"]), lists, lists),
    max_size=10,
)


def frozen_codes(seed: int) -> np.ndarray:
    """Some items share a semantic ID, some prefixes do not exist."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(size, size=ITEMS) for size in SIZES], axis=1).astype(np.int32)


def built(shape: str, seed: int) -> Any:
    nothing = np.zeros((ITEMS, 0), np.float32)
    torch.manual_seed(seed)
    config = RecommenderConfig(SIZES, ITEMS, 0, 0, shape=shape, d_model=8, layers=1, heads=2)  # type: ignore[arg-type]
    model = build_model(config, ItemFeatures(frozen_codes(seed), nothing, nothing, np.ones(ITEMS, np.int64)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.double().eval()


@dataclass
class Mirror:
    """What a live catalogue and its segments should hold, in Python's own sets and lists."""

    codes: list[Prefix]
    valid: set[int] = field(default_factory=lambda: set(range(ITEMS)))
    members: dict[str, set[int]] = field(default_factory=dict)

    @property
    def prefixes(self) -> set[Prefix]:
        return {code[:depth] for code in self.codes[:ITEMS] for depth in range(len(SIZES) + 1)}

    def known(self, item: int) -> Prefix:
        """The longest prefix of an item's semantic ID that the frozen trie has."""
        code = self.codes[item]
        return max((code[:depth] for depth in range(len(SIZES) + 1) if code[:depth] in self.prefixes), key=len)

    def cold(self, item: int, cold: ColdPrior) -> float:
        """The declared prior, level by level."""
        code, prefixes, total = self.codes[item], self.prefixes, 0.0
        for depth in range(len(self.known(item)), len(SIZES)):
            children = sum(len(prefix) == depth + 1 and prefix[:-1] == code[:depth] for prefix in prefixes)
            total -= math.log(1 + children) + cold.penalty
        return min(total + cold.lift, 0.0)


class World:
    """A live catalogue with segments, and its mirror."""

    def __init__(self, seed: int, cold: ColdPrior) -> None:
        codes = frozen_codes(seed)
        self.trie = SidTrie.build(codes, SIZES)
        self.catalogue = LiveCatalogue(self.trie, cold=cold)
        self.segments = Segments(self.trie, catalogue=self.catalogue)
        self.mirror = Mirror([tuple(code) for code in codes.tolist()])
        rng = np.random.default_rng(seed)
        for name in NAMES:
            members = rng.random(ITEMS) < 0.8
            self.segments.put(name, members)
            self.mirror.members[name] = set(np.flatnonzero(members).tolist())

    def apply(self, what: str, some: list[int], others: list[int]) -> None:
        {"add": self.add, "remove": self.remove, "restore": self.restore, "merge": self.merge}.get(what, self.change)(
            what, some, others
        )

    def add(self, _: str, some: list[int], others: list[int]) -> None:
        codes = np.array([np.unravel_index(n % math.prod(SIZES), SIZES) for n in some], dtype=np.int64).reshape(-1, 3)
        items = self.catalogue.add(codes)
        assert items.tolist() == list(range(len(self.mirror.codes), len(self.mirror.codes) + len(codes)))
        self.mirror.codes += [tuple(code) for code in codes.tolist()]
        self.mirror.valid |= set(items.tolist())
        self.change("stock", [*items.tolist()], [])  # an added item is in no segment until it is put there

    def remove(self, _: str, some: list[int], others: list[int]) -> None:
        items = [n % len(self.mirror.codes) for n in some]
        self.catalogue.remove(np.array(items, dtype=np.int64))
        self.mirror.valid -= set(items)

    def restore(self, _: str, some: list[int], others: list[int]) -> None:
        items = [n % len(self.mirror.codes) for n in some]
        self.catalogue.restore(np.array(items, dtype=np.int64))
        self.mirror.valid |= set(items)

    def merge(self, _: str, some: list[int], others: list[int]) -> None:
        added = {item for item in self.mirror.valid if item >= ITEMS}
        assert self.catalogue.merge() == len(added)

    def change(self, name: str, some: list[int], others: list[int]) -> None:
        add = [n % len(self.mirror.codes) for n in some]
        remove = [n % len(self.mirror.codes) for n in others]
        self.segments.change(name, add=np.array(add, dtype=np.int64), remove=np.array(remove, dtype=np.int64))
        self.mirror.members[name] = self.mirror.members[name] | set(add) - set(remove)
        self.mirror.members[name] -= set(remove)

    def shown(self, names: list[str], excluded: list[int]) -> list[int]:
        kept = self.mirror.valid - set(excluded)
        for name in names:
            kept = kept & self.mirror.members[name]
        return sorted(kept)


def prefix_scores(model: Any, shape: str, prefixes: set[Prefix]) -> dict[Prefix, float]:
    """Log-probability of every frozen prefix over the children that its parent has."""
    items, length = torch.from_numpy(HISTORY.astype(np.int64))[None], torch.tensor([len(HISTORY)])
    following = {"compact": head_logits, "token": backbone_logits}[shape]
    scores: dict[Prefix, float] = {(): 0.0}
    with torch.inference_mode():
        for prefix in sorted((prefix for prefix in prefixes if len(prefix) < len(SIZES)), key=len):
            codes = sorted(longer[-1] for longer in prefixes if longer and longer[:-1] == prefix)
            values = following(model, items, length, prefix)[codes].log_softmax(0).tolist()
            scores |= {(*prefix, code): scores[prefix] + value for code, value in zip(codes, values, strict=True)}
    return scores


def head_logits(model: Any, items: torch.Tensor, length: torch.Tensor, prefix: Prefix) -> torch.Tensor:
    hidden = model.encode(items, length)
    state = model.head.start(hidden)
    for level, code in enumerate(prefix):
        state = model.head.advance(level, state, torch.tensor([code]))
    logits: torch.Tensor = model.head.logits(len(prefix), hidden, state)[0]
    return logits


def backbone_logits(model: Any, items: torch.Tensor, length: torch.Tensor, prefix: Prefix) -> torch.Tensor:
    written = [model.embed_codes(level, torch.tensor([code]))[:, None] for level, code in enumerate(prefix)]
    x = torch.cat([model.start[None, None], model.embed_items(items), *written], dim=1)
    hidden, _ = model.backbone(x, positions=torch.arange(x.shape[1])[None])
    logits: torch.Tensor = model.token_logits(len(prefix), hidden[:, -1])[0]
    return logits


def enumerated(
    mirror: Mirror, scores: dict[Prefix, float], shown: list[int], cold: ColdPrior, k: int, beam: int
) -> list[tuple[int, float]]:
    """A beam over dictionaries, doubled until it holds enough: items and scores, best first."""
    known = {item: mirror.known(item) for item in shown}
    values = {item: scores[known[item]] + mirror.cold(item, cold) for item in shown}
    widest = max(sum(len(prefix) == depth for prefix in mirror.prefixes) for depth in (1, 2, 3))
    width = min(beam, widest)
    while True:
        kept: set[Prefix] = {()}
        every: set[Prefix] = {()}
        for depth in (1, 2, 3):
            live = {prefix[:depth] for prefix in known.values() if len(prefix) >= depth}
            ordered = sorted(
                (prefix for prefix in live if prefix[:-1] in kept), key=lambda one: (-round(scores[one], 9), one)
            )
            kept = set(ordered[:width])
            every = every | kept
        found = [item for item in shown if known[item] in every]
        if len(found) >= min(k, len(shown)) or width >= widest:
            break
        width *= 2
    order = sorted(
        found, key=lambda item: (-round(values[item], 9), item >= ITEMS, mirror.codes[item] * (item < ITEMS), item)
    )
    return [(item, values[item]) for item in order[:k]]


cases = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 1000),
        "names": st.sets(st.sampled_from(NAMES)),
        "excluded": lists,
        "cold": st.builds(ColdPrior, st.sampled_from([0.0, 1.5]), st.sampled_from([0.0, 1.0, 20.0])),
        "k": st.integers(1, 40),
        "beam": st.sampled_from([1, 2, 5, 50]),
    }
)


def check(
    shape: str, makers: list[Callable[[Any, SidTrie], Decoder]], case: dict[str, Any], changes: list[Any]
) -> None:
    """After every change, each decoder's answer is the enumeration's, and theirs are alike to the last bit."""
    model, world = built(shape, case["seed"]), World(case["seed"], case["cold"])
    scores = prefix_scores(model, shape, world.mirror.prefixes)
    offered = [make(model, world.trie) for make in makers]
    for step in [*changes, ("merge", [], []), ("merge", [], [])]:
        world.apply(*step)
        hidden = [n % len(world.mirror.codes) for n in case["excluded"]]
        eligibility = world.segments.eligibility(case["names"], [np.array(hidden, dtype=np.int64)])
        shown = world.shown(sorted(case["names"]), hidden)
        wanted = enumerated(world.mirror, scores, shown, case["cold"], case["k"], case["beam"])
        found = [
            decoder.decode([HISTORY], k=case["k"], beam=case["beam"], eligibility=eligibility).ranked[0]
            for decoder in offered
        ]
        assert found[0].items.tolist() == [item for item, _ in wanted]
        np.testing.assert_allclose(found[0].scores, [score for _, score in wanted], rtol=1e-9, atol=1e-9)
        for other in found[1:]:
            np.testing.assert_array_equal(other.items, found[0].items)
            np.testing.assert_array_equal(other.scores, found[0].scores)


@settings(max_examples=40)
@given(case=cases, changes=steps)
def test_hash_set_bitmap_and_csr_answer_as_the_enumeration(case: dict[str, Any], changes: list[Any]) -> None:
    check("compact", list(STRUCTURES.values()), case, changes)


@pytest.mark.parametrize("name", ["batched", "beam", "speculative"])
@settings(max_examples=8)
@given(case=cases, changes=st.lists(steps.filter(bool).map(lambda found: found[0]), max_size=5))
def test_every_decoder_answers_as_the_enumeration(name: str, case: dict[str, Any], changes: list[Any]) -> None:
    shape, make = DECODERS[name]
    check(shape, [make], case, changes)


@settings(max_examples=12)
@given(seed=st.integers(0, 1000), changes=steps, names=st.sets(st.sampled_from(NAMES)))
def test_prefixes_are_counted_as_anew(
    seed: int, changes: list[tuple[str, list[int], list[int]]], names: set[str]
) -> None:
    world = World(seed, ColdPrior())
    world.segments.live(names)
    for step in changes:
        world.apply(*step)
        live, mirror = world.segments.live(names), world.mirror
        shown = world.shown(sorted(names), [])
        members = np.isin(np.arange(len(mirror.codes)), shown)
        again = world.segments.arbitrary(members).live
        assert again is not None
        assert live.total == again.total == len(shown)
        np.testing.assert_equal(live.counts, again.counts)
        np.testing.assert_equal(live.alive or again.alive, again.alive)
        for depth, counts in enumerate(live.counts, start=1):
            nodes = sorted(prefix for prefix in mirror.prefixes if len(prefix) == depth)
            assert counts.tolist() == [sum(mirror.known(item)[:depth] == node for item in shown) for node in nodes]


def decoders(seed: int) -> list[tuple[Any, Decoder, World]]:
    found = []
    for shape, make in DECODERS.values():
        model, world = built(shape, seed), World(seed, ColdPrior())
        found.append((model, make(model, world.trie), world))
    return found


def everything(
    decoder: Decoder, world: World, prior: LogPrior | None = None, *, k: int = 500, beam: int = 500
) -> Ranked:
    eligibility = world.segments.eligibility([])
    return decoder.decode([HISTORY], k=k, beam=beam, eligibility=eligibility, log_prior=prior).ranked[0]


@pytest.mark.parametrize("seed", range(3))
def test_no_score_of_an_old_item_ever_moves(seed: int) -> None:
    for _, decoder, world in decoders(seed):
        before = everything(decoder, world)
        world.add("add", list(range(math.prod(SIZES))), [])  # every semantic ID there is
        world.add("add", list(range(math.prod(SIZES))), [])
        for _ in range(2):
            after = everything(decoder, world)
            old = after.items < ITEMS
            np.testing.assert_array_equal(after.items[old], before.items)
            np.testing.assert_array_equal(after.scores[old], before.scores)
            assert len(after.items) == ITEMS + 2 * math.prod(SIZES)
            world.catalogue.merge()


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=10)
@given(seed=st.integers(0, 1000), width=st.integers(1, 5), code=st.integers(0, math.prod(SIZES) - 1))
def test_a_log_prior_lifts_and_sinks_an_added_item(name: str, seed: int, width: int, code: int) -> None:
    shape, make = DECODERS[name]
    world = World(seed, ColdPrior(2.0))
    decoder = make(built(shape, seed), world.trie)
    world.add("add", [*range(0, 36, 5), code], [])
    world.catalogue.merge()
    world.add("add", [code + 1, code], [])
    item, none = len(world.mirror.codes) - 3, np.zeros(ITEMS)  # with others behind it
    pushed = np.zeros(item - ITEMS + 1)
    pushed[-1] = 50.0
    lifted = everything(decoder, world, LogPrior(world.trie, none, pushed), k=1, beam=width)
    assert lifted.items.tolist() == [item]
    sunk = everything(decoder, world, LogPrior(world.trie, none, -pushed))
    assert sunk.items.tolist()[-1] == item
    plain = everything(decoder, world)
    zero = everything(decoder, world, LogPrior(world.trie, none))
    assert zero.items.tolist() == plain.items.tolist()
    np.testing.assert_allclose(zero.scores, plain.scores, atol=1e-12)
    values = dict(zip(plain.items.tolist(), plain.scores.tolist(), strict=True))
    for shift, answer in ((50.0, lifted), (-50.0, sunk)):
        moved = dict(zip(answer.items.tolist(), answer.scores.tolist(), strict=True))
        assert moved[item] == pytest.approx(values[item] + shift, abs=1e-9)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 1000),
    penalty=st.floats(0, 20),
    lift=st.floats(0, 20),
    code=st.integers(0, math.prod(SIZES) - 1),
)
def test_the_cold_prior_is_bounded(seed: int, penalty: float, lift: float, code: int) -> None:
    world = World(seed, ColdPrior(penalty, lift))
    decoder = DECODERS["csr"][1](built("compact", seed), world.trie)
    world.add("add", [code], [])
    found = everything(decoder, world)
    scores = prefix_scores(built("compact", seed), "compact", world.mirror.prefixes)
    known = world.mirror.known(ITEMS)
    lost = scores[known] - float(found.scores[found.items == ITEMS][0])
    missing = len(SIZES) - len(known)
    most = math.log(1 + [*SIZES, 0][len(known)])
    least = min(missing, 1) * math.log(2)
    declared = [max(bound + missing * penalty - lift, 0.0) for bound in (least, most)]
    assert declared[0] - 1e-9 <= lost <= declared[1] + 1e-9


def test_what_changes_while_decoders_read_is_never_shown_wrongly() -> None:
    """Items come, go and are merged; what is gone for good stays away, what was just added is there."""
    _, decoder, world = decoders(3)[1]
    gone = world.catalogue.add(np.zeros((3, 3), dtype=np.int64))
    world.catalogue.remove(np.array([1, 7, 13, *gone]))
    moving = np.concatenate([np.arange(0, ITEMS, 2), world.catalogue.add(np.full((5, 3), 2))])
    stop = Event()

    def churn() -> None:
        rng = np.random.default_rng(0)
        while not stop.is_set():
            world.catalogue.remove(rng.choice(moving, 4))
            world.catalogue.restore(rng.choice(moving, 4))

    writer = Thread(target=churn)
    shown: set[int] = set()
    with Merging(world.catalogue, seconds=0.001) as merging:
        writer.start()
        for turn in range(50):
            new = world.catalogue.add(np.array([[turn % 3, turn % 2, turn % 4]]))
            answer = everything(decoder, world)
            assert int(new[0]) in answer.items
            assert len(set(answer.items.tolist())) == len(answer.items)
            shown.update(answer.items.tolist())
        stop.set()
        writer.join()
    assert merging.merges > 3
    assert not shown & {1, 7, 13, *gone.tolist()}
    assert shown >= set(range(ITEMS)) - {1, 7, 13} - set(moving.tolist())


def test_many_changes_between_two_requests_reach_a_copy_on_the_device() -> None:
    _, decoder, world = decoders(5)[1]
    world.catalogue.remove(np.array([0]))
    everything(decoder, world)
    rng = np.random.default_rng(0)
    for item in rng.integers(ITEMS, size=1500).tolist():
        world.catalogue.remove(np.array([item]))
        world.catalogue.restore(np.array([item]))
    world.catalogue.remove(np.arange(5, ITEMS))
    assert sorted(everything(decoder, world).items.tolist()) == [0, 1, 2, 3, 4]


def test_many_additions_keep_few_runs_without_anyone_merging() -> None:
    _, decoder, world = decoders(6)[0]
    for turn in range(60):
        world.catalogue.add(np.full((100, 3), turn % 3))
    assert len(world.catalogue.added.runs) <= 17
    assert len(everything(decoder, world, k=7000).items) == ITEMS + 6000


def test_the_flat_decoder_hides_what_is_removed_and_has_nothing_to_say_of_what_is_added() -> None:
    codes, nothing = frozen_codes(1), np.zeros((ITEMS, 0), np.float32)
    config = RecommenderConfig(SIZES, ITEMS, 0, 0, shape="flat", d_model=8, layers=1, heads=2)
    model = build_model(config, ItemFeatures(codes, nothing, nothing, np.ones(ITEMS, np.int64))).eval()
    world = World(1, ColdPrior())
    new = world.catalogue.add(codes[:2])
    world.catalogue.remove(np.array([4, 5]))
    decoder = build_decoder(model, world.trie)
    eligibility = world.segments.eligibility([], [np.array([6, *new])])
    answer = decoder.decode([HISTORY], k=99, beam=1, eligibility=eligibility).ranked[0]
    assert sorted(answer.items.tolist()) == sorted(set(range(ITEMS)) - {4, 5, 6})


def test_an_arbitrary_set_speaks_of_added_items_or_leaves_them_out() -> None:
    _, decoder, world = decoders(2)[0]
    world.catalogue.add(np.zeros((4, 3), dtype=np.int64))
    world.catalogue.remove(np.array([0, ITEMS]))
    members = np.arange(ITEMS + 2) % 2 == 0  # 24 is removed, 25 odd, 26 and 27 not spoken of
    found = decoder.decode([HISTORY], k=99, beam=99, eligibility=world.segments.arbitrary(members)).ranked[0]
    assert sorted(found.items.tolist()) == list(range(2, ITEMS, 2))
    longer = np.ones(ITEMS + 4, dtype=bool)
    found = decoder.decode([HISTORY], k=99, beam=99, eligibility=world.segments.arbitrary(longer)).ranked[0]
    assert sorted(found.items.tolist()) == [*range(1, ITEMS), 25, 26, 27]
    plain = decoder.decode([HISTORY], k=99, beam=99, eligibility=Eligibility()).ranked[0]
    assert sorted(plain.items.tolist()) == list(range(ITEMS))  # what is live is asked of the segments


@pytest.mark.parametrize("penalty", [-0.1, 20.5, math.nan])
def test_a_penalty_outside_its_range_is_refused(penalty: float) -> None:
    with pytest.raises(ConfigError, match="penalty"):
        ColdPrior(penalty)
    with pytest.raises(ConfigError, match="lift"):
        ColdPrior(lift=penalty)


@pytest.mark.parametrize("codes", [np.zeros((2, 2)), np.array([[0, 3, 0]]), np.array([[0, 0, -1]])])
def test_a_semantic_id_of_another_tokenizer_is_refused(codes: np.ndarray) -> None:
    world = World(0, ColdPrior())
    with pytest.raises(InputError, match="codes"):
        world.catalogue.add(codes)
    assert world.catalogue.items == ITEMS


@pytest.mark.parametrize("item", [-1, ITEMS + 1])
def test_an_index_that_was_never_given_is_refused(item: int) -> None:
    world = World(0, ColdPrior())
    world.catalogue.add(np.zeros((1, 3), dtype=np.int64))
    with pytest.raises(InputError, match=r"0\.\.24"):
        world.catalogue.remove(np.array([item]))
    with pytest.raises(InputError, match=r"0\.\.24"):
        world.segments.change("stock", add=np.array([item]))
    with pytest.raises(InputError, match=r"0\.\.24"):
        DECODERS["csr"][1](built("compact", 0), world.trie).decode(
            [HISTORY], k=1, beam=1, eligibility=world.segments.eligibility([], [np.array([item])])
        )


@pytest.mark.parametrize("bad", [np.array([0.0, np.inf]), np.zeros((2, 2)), np.zeros(2, np.int64)])
def test_a_bad_prior_of_added_items_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"item 25 is not finite|\(n,\) floating"):
        LogPrior(World(0, ColdPrior()).trie, np.zeros(ITEMS), bad)


# Known to the frozen trie: nothing, the first code, two codes, the whole.
ONLY_NEW = [((3, 3, 4), [2, 0, 0]), ((3, 3, 4), [0, 2, 0]), ((3, 3, 4), [0, 0, 3]), ((3, 3, 4), [0, 0, 0])]


@pytest.mark.parametrize(("sizes", "code"), ONLY_NEW)
def test_decoders_answer_with_added_items_where_nothing_else_may_be_shown(
    sizes: tuple[int, ...], code: list[int]
) -> None:
    codes = np.stack([np.arange(ITEMS) % 2, np.arange(ITEMS) // 2 % 2, np.arange(ITEMS) // 4 % 3], axis=1)
    trie = SidTrie.build(codes, sizes)
    catalogue = LiveCatalogue(trie)
    segments = Segments(trie, catalogue=catalogue)
    (item,) = catalogue.add(np.array([code]))
    segments.put("new", np.arange(ITEMS + 1) == item)
    eligibility = segments.eligibility(["new"])
    model = built("token", 1)
    answers = [
        build_decoder(model, trie, name=name).decode([HISTORY], k=3, beam=4, eligibility=eligibility).ranked[0]
        for name in ("beam", "speculative")
    ]
    assert [answer.items.tolist() for answer in answers] == [[item], [item]]
    assert answers[0].scores[0] == pytest.approx(answers[1].scores[0])


def test_more_may_be_asked_for_than_there_is_memory_for() -> None:
    model, trie = built("compact", 1), SidTrie.build(frozen_codes(1), SIZES)
    answer = NezhaDecoder(model, trie).decode([HISTORY], k=10**15, beam=4, eligibility=Eligibility()).ranked[0]
    assert sorted(answer.items.tolist()) == list(range(ITEMS))


def test_a_change_of_many_items_is_not_kept_for_copies_elsewhere() -> None:
    codes = np.stack([np.arange(300) % 3, np.arange(300) % 2, np.zeros(300, np.int64)], axis=1)
    trie = SidTrie.build(codes, SIZES)
    catalogue = LiveCatalogue(trie)
    segments = Segments(trie, catalogue=catalogue)
    segments.put("stock", np.ones(300, dtype=bool))
    live = segments.live(["stock"])
    segments.change("stock", remove=np.arange(3))
    assert len(live.journal) == 1
    segments.change("stock", remove=np.arange(200))
    assert not live.journal
    assert live.total == 100


def test_a_segment_is_named_while_another_thread_changes_the_catalogue() -> None:
    trie = SidTrie.build(frozen_codes(1), SIZES)
    catalogue = LiveCatalogue(trie)
    segments = Segments(trie, catalogue=catalogue)
    segments.put("stock", np.ones(ITEMS, dtype=bool))
    known, answered = segments.live(["stock"]), Event()

    def ask() -> None:
        assert segments.live(["stock"]) is known
        answered.set()

    with catalogue.lock:  # a change is under way
        thread = Thread(target=ask)
        thread.start()
        assert answered.wait(10)
    thread.join()


def test_intersections_that_are_not_kept_are_answered() -> None:
    trie = SidTrie.build(frozen_codes(1), SIZES)
    segments = Segments(trie, keep=0)
    segments.put("stock", np.arange(ITEMS) < 5)
    assert segments.live(["stock"]).total == 5
