"""`windfire bench decoding --part verifier`: memory, time to build, changes under load, and the masks' share."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import torch

from benchmarks.decoding_methods import draw_codes
from benchmarks.decoding_parts.verifier_settings import CONFIG, VerifierSettings
from benchmarks.decoding_parts.verifier_tables import sets_table, structures_table
from benchmarks.figures import Figure, Report, environment, now
from recsys.backends import choose_engine
from recsys.decoding import kernels
from recsys.decoding.eligibility import EligibilityIndex, RequestMask
from recsys.decoding.head_beam import HeadBeam
from recsys.decoding.live_catalogue import LiveCatalogue, Merging
from recsys.decoding.nezha import NezhaDecoder
from recsys.decoding.packed import bits_at
from recsys.decoding.segments import Segments
from recsys.decoding.trie import SidTrie
from recsys.decoding.verifier import Rows, listing
from recsys.errors import DataError
from recsys.models import CompactRecommender, ItemFeatures, RecommenderConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from benchmarks.decoding_parts import Request
    from benchmarks.table import Table
    from recsys.decoding.verifier import Structure

    Items = npt.NDArray[np.int64]

TABLES: Final[dict[str, Callable[[dict[str, Figure]], Table]]] = {"": structures_table, "sets": sets_table}
STRUCTURES: Final[dict[str, Structure]] = {"set": "sorted_keys", "bitmap": "bitmap", "csr": "csr"}
_DRAWS: Final = 1000  # of the bootstrap over rounds
_ADDED_AT: Final = 3  # every third change adds items


@dataclass(frozen=True, slots=True)
class World:
    """One catalogue, live, with its sets.

    Attributes:
        items: I.
        codes: (I, L).
        trie: over them.
        catalogue: over the trie.
        segments: of the catalogue.
        model: frozen.
        seconds: that trie, live catalogue and the empty sets took to build.
        cpu: the same in seconds of the processor.
    """

    items: int
    codes: npt.NDArray[np.int32]
    trie: SidTrie
    catalogue: LiveCatalogue
    segments: Segments
    model: CompactRecommender
    seconds: float
    cpu: float


def measure(request: Request) -> Report:
    """See `bench`."""
    settings = VerifierSettings.load(request.config or CONFIG, quick=request.quick)
    return bench(settings, request.command, say=request.say)


def bench(settings: VerifierSettings, command: str, *, say: Callable[[str], None]) -> Report:
    """Measure every catalogue and structure.

    Args:
        settings: of verifier.yaml.
        command: the command line that repeats this, for the report.
        say: told in one line what was done.

    Raises:
        DataError: a change was not seen by the request behind it.
    """
    started, machine = now(), environment()
    figures: list[Figure] = []
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _build(1000, [16, 16, 16], settings)  # compiles what is timed below
        for items, sizes in settings.catalogues.items():
            if sizes is not None:
                figures += _of_catalogue(_build(items, sizes, settings), settings, say)
    finally:
        torch.set_num_threads(before)
    kept = settings.model_dump(mode="json")
    return Report(command, kept, [settings.seed], figures, started, machine | {"threads": 1})


def bytes_held(world: World, structure: Structure) -> int:
    """Bytes of all that answers validity and eligibility, item-id strings apart.

    The children in the given structure, where the children of each node begin, the leaf of each item, the items of each
    leaf, and of the live catalogue one bit per item and leaf and the live items of each prefix. Named sets are apart.
    """
    trie = world.trie
    children = sum(verifier.nbytes for verifier in listing(trie, structure))
    starts = sum(start.nbytes for start in trie.child_start) if structure == "sorted_keys" else 0
    per_item = trie.item_leaf.nbytes + trie.leaf_item.nbytes + trie.leaf_words.nbytes + trie.leaf_sample.nbytes
    return children + starts + per_item + Segments(trie).nbytes


def _build(items: int, sizes: Sequence[int], settings: VerifierSettings) -> World:
    rng = np.random.default_rng(settings.seed)
    codes = draw_codes(items, sizes, settings.skew, rng)
    began, used = time.perf_counter(), time.process_time()
    trie = SidTrie.build(codes, tuple(sizes))
    catalogue = LiveCatalogue(trie)
    segments = Segments(trie, catalogue=catalogue)
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    for name, share in settings.segments.items():
        segments.put(name, rng.random(items) < share)
    known = min(settings.known, items)
    nothing = np.zeros((known, 0), np.float32)
    torch.manual_seed(settings.seed)
    config = RecommenderConfig(tuple(sizes), known, 0, 0, **settings.model.model_dump())
    model = CompactRecommender(config, ItemFeatures(codes[:known], nothing, nothing, np.ones(known, np.int64))).eval()
    model.freeze(choose_engine(settings.engine, config))
    return World(items, codes, trie, catalogue, segments, model, seconds, cpu)


def _of_catalogue(world: World, settings: VerifierSettings, say: Callable[[str], None]) -> list[Figure]:
    rng = np.random.default_rng(settings.seed)
    nodes = [world.trie.nodes(depth) for depth in range(1, world.trie.levels + 1)]
    say(f"{world.items:,} items, prefixes per depth {nodes}, built in {world.seconds:.2f} s, {world.cpu:.2f} s of CPU")
    figures = list(_of_sets(world, settings, rng))
    stems = {name: f"decoding.verifier.{name}.items{world.items}" for name in STRUCTURES}
    decoders = {
        name: NezhaDecoder(world.model, world.trie, structure=structure) for name, structure in STRUCTURES.items()
    }
    # before anything changes: items added for one structure would be in the way of the next
    shares = {name: _share(stem, decoders[name], world, settings, rng) for name, stem in stems.items()}
    for name, structure in STRUCTURES.items():
        stem = stems[name]
        began, used = time.perf_counter(), time.process_time()
        listing(world.trie, structure)
        seconds, cpu = world.seconds + time.perf_counter() - began, world.cpu + time.process_time() - used
        held = bytes_held(world, structure)
        figures += [
            Figure(f"{stem}.bytes_per_item", held / world.items, "bytes", n=world.items),
            Figure(f"{stem}.build_s", seconds, "seconds", note=f"trie, live catalogue, children; {cpu:.2f} s of CPU"),
        ]
        figures += [*shares[name], *_changes(stem, decoders[name], world, settings, rng)]
        shown = [f"{figure.name.rsplit('.', 1)[1]} {figure.value:.4g}" for figure in figures if stem in figure.name]
        say(f"{name}: {', '.join(shown)}")
    return figures


def _of_sets(world: World, settings: VerifierSettings, rng: np.random.Generator) -> Iterator[Figure]:
    """What named sets cost, and a request that comes with a set of its own."""
    stem = f"decoding.verifier.items{world.items}"
    before = world.segments.nbytes
    began = time.perf_counter()
    for names in settings.kept:
        world.segments.live(names)
    counted = (time.perf_counter() - began) / len(settings.kept) * 1e3
    yield Figure(f"{stem}.intersection_ms", counted, "ms", n=len(settings.kept), note="mean, counted once each")
    held = (world.segments.nbytes - before) / len(settings.kept) / world.items
    yield Figure(f"{stem}.intersection_bytes_per_item", held, "bytes", note="one intersection that is kept current")
    times = []
    for _ in range(settings.bitset_rounds):
        members = rng.random(world.items) < 0.5
        began = time.perf_counter()
        world.segments.arbitrary(members)
        times.append((time.perf_counter() - began) * 1e3)
    yield _median(f"{stem}.bitset_ms", np.array(times), "ms", rng, "an arbitrary set per request, one pass")


def _requests(world: World, settings: VerifierSettings, rng: np.random.Generator) -> Iterator[tuple[Items, Items]]:
    """Histories, and the items that a request excludes: its history and a list of its own."""
    while True:
        history = rng.integers(min(settings.known, world.items), size=settings.history)
        yield history, np.concatenate([history, rng.integers(world.items, size=settings.excluded)])


def _share(
    stem: str, decoder: NezhaDecoder, world: World, settings: VerifierSettings, rng: np.random.Generator
) -> list[Figure]:
    """How much of a decode with sets and a list is spent in masks, timed where it is spent."""
    times = np.zeros((settings.rounds, 3))  # with masks, of it in masks, the same request without
    requests = _requests(world, settings, rng)
    k, beam = settings.answer, settings.beam
    for turn in range(-3, settings.rounds):  # the first ones warm up
        history, excluded = next(requests)
        for eligibility, place in ((world.segments.eligibility([]), 2), (None, 0)):
            spent = 0.0
            for _ in range(2):  # a server runs one kind of request: the second finds its code in the caches
                with _timed() as clock:
                    began = time.perf_counter()
                    asked = eligibility or world.segments.eligibility(settings.requested, [excluded])
                    clock[0] += time.perf_counter() - began
                    decoder.decode([history], k=k, beam=beam, eligibility=asked)
                    spent = time.perf_counter() - began
            times[max(turn, 0), place] = spent * 1e3
            if place == 0:
                times[max(turn, 0), 1] = clock[0] * 1e3
    masked, masks, plain = times.T
    note = f"in making masks, hiding and checking items; {len(settings.requested)} sets, a list of {settings.excluded}"
    return [
        _median(f"{stem}.share", masks / masked, "share", rng, note),
        _median(f"{stem}.mask_ms", masks, "ms", rng, note),
        _median(
            f"{stem}.decode_ms", masked, "ms", rng, f"beam {beam}, with sets and list, forward by {settings.engine}"
        ),
        _median(f"{stem}.plain_ms", plain, "ms", rng, "the same requests without sets and list"),
    ]


@contextmanager
def _timed() -> Iterator[list[float]]:
    """Seconds that masks take, added up in place until the block ends.

    Making masks and checking items is timed where it happens. Children are hidden inside the compiled step of a level:
    the loop that does it is run once more at the block's end for every level, on the children and nodes it had.
    """
    clock, hidden = [0.0], list[tuple[Rows, tuple[Any, ...]]]()

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = call(*args, **kwargs)
            clock[0] += time.perf_counter() - began
            return result

        return timed

    def noted(call: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*args: Any) -> Any:
            at = next(place for place, value in enumerate(args) if isinstance(value, Rows))
            hidden.append((args[at], args[at + 1]))  # what is alive and what is dead stands behind the rows
            return call(*args)

        return noting

    places = (
        (EligibilityIndex, "masks", watched), (RequestMask, "keeps", watched), (HeadBeam, "_chosen", noted)
    )  # fmt: skip
    calls = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    try:
        for owner, name, around in places:
            setattr(owner, name, around(getattr(owner, name)))
        yield clock
    finally:
        for owner, name, call in calls:
            setattr(owner, name, call)
    totals = [np.zeros(len(rows.child), np.float32) for rows, _ in hidden]
    began = time.perf_counter()
    for values, (rows, shown) in zip(totals, hidden, strict=True):
        kernels.hide(values, rows.child, *shown)
    clock[0] += time.perf_counter() - began


def _changes(
    stem: str, decoder: NezhaDecoder, world: World, settings: VerifierSettings, rng: np.random.Generator
) -> list[Figure]:
    """Changes as fast as they go while another thread decodes; each must be seen by the next request."""
    figures = []
    for name, size in (("changes_per_s", settings.batch), ("single_changes_per_s", 1)):
        stop, decoded = Event(), [0]
        reader = Thread(target=_decode_until, args=(stop, decoded, decoder, world, settings))
        index = EligibilityIndex(world.trie)
        with Merging(world.catalogue, seconds=0.2):
            reader.start()
            began = time.perf_counter()
            count = 0
            while time.perf_counter() - began < settings.seconds:
                _change(world, index, settings, size, adds=count // size % _ADDED_AT == 0, rng=rng)
                count += size
            seconds = time.perf_counter() - began
            stop.set()
            reader.join()
        note = f"{size} at a time, each seen by the next request's mask; {decoded[0] / seconds:.0f} decodes/s meanwhile"
        figures.append(Figure(f"{stem}.{name}", count / seconds, "changes/s", n=count, note=note))
    for _ in range(settings.witnesses):
        _witness(world, decoder, settings, rng)
    return figures


def _decode_until(
    stop: Event, decoded: list[int], decoder: NezhaDecoder, world: World, settings: VerifierSettings
) -> None:
    for history, excluded in _requests(world, settings, np.random.default_rng(settings.seed)):
        if stop.is_set():
            return
        eligibility = world.segments.eligibility(settings.requested, [excluded])
        decoder.decode([history], k=settings.answer, beam=settings.beam, eligibility=eligibility)
        decoded[0] += 1


def _change(
    world: World,
    index: EligibilityIndex,
    settings: VerifierSettings,
    size: int,
    *,
    adds: bool,
    rng: np.random.Generator,
) -> None:
    """Add items and put them into the requested sets, or remove and restore some; and ask as the next request would."""
    catalogue = world.catalogue
    if adds:
        items = catalogue.add(rng.integers(world.trie.sizes, size=(size, world.trie.levels)))
        for name in settings.requested:
            world.segments.change(name, add=items)
        wanted = np.ones(size, dtype=np.bool_)
    else:
        items = np.unique(rng.integers(catalogue.items, size=size))
        wanted = ~catalogue.valid.holds(items)
        catalogue.remove(items[~wanted])
        catalogue.restore(items[wanted])
    mask = index.masks(world.segments.eligibility([]), 1)[0]
    came = items[wanted]
    paths = zip(mask.live.alive, catalogue.paths(came), strict=False)
    led = all(bits_at(bits, nodes[nodes >= 0]).all() for bits, nodes in paths)  # no prefix above them is cut
    if not led or (mask.keeps(items) != wanted).any():
        raise DataError("a change was not seen by the next request", field="items", value=items.tolist())


def _witness(world: World, decoder: NezhaDecoder, settings: VerifierSettings, rng: np.random.Generator) -> None:
    """The best item of a whole answer is gone when it is removed, and back when it is restored."""
    history, _ = next(_requests(world, settings, rng))

    def best() -> list[int]:
        eligibility = world.segments.eligibility(settings.requested)
        answer = decoder.decode([history], k=settings.answer, beam=settings.beam, eligibility=eligibility).ranked[0]
        return cast("list[int]", answer.items.tolist())

    before = best()
    first = np.array(before[:1])
    world.catalogue.remove(first)
    without = best()
    world.catalogue.restore(first)
    if before[0] in without or best() != before:
        raise DataError("a change did not show in the next answer", field="item", value=before[0])


def _median(name: str, values: npt.NDArray[np.float64], unit: str, rng: np.random.Generator, note: str) -> Figure:
    draws = np.median(rng.choice(values, size=(_DRAWS, len(values))), axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Figure(name, float(np.median(values)), unit, float(low), float(high), len(values), f"median; {note}")
