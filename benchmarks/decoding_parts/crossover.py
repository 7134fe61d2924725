"""The part `crossover`: from how many items on writing semantic IDs is cheaper than a dot product with all of them.

One compact trunk stands before every rival. `nezha` runs over its untrained head and a trie drawn with the skew of real
semantic IDs; `flat` multiplies a user's vector with all item vectors and takes the best; the indexes are faiss's. Item
vectors are sums of what their codes and they themselves add, so that they lie in clusters as learned ones do, and a
user's vector lies near an item's. Times, bytes and updates are measured; what is won in Recall by a dot product that is
trained for it stands in the part `peers`.
"""

from __future__ import annotations

import gc
import json
import time
from dataclasses import asdict, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from benchmarks.decoding_methods import draw_codes
from benchmarks.decoding_parts.ann import BUILDERS, faiss_threads, index_bytes
from benchmarks.decoding_parts.crossover_tables import crossing, crossing_table, memory_table, times_table
from benchmarks.decoding_parts.peers import prefill, whole
from benchmarks.decoding_parts.settings import FOLDER, CrossoverSettings
from benchmarks.decoding_parts.timing import middle, take_turns
from benchmarks.figures import Figure, Report, environment, now
from benchmarks.settings_file import load_settings
from recsys.decoding.nezha import NezhaDecoder
from recsys.decoding.segments import Segments
from recsys.decoding.trie import SidTrie
from recsys.models import CompactRecommender, ItemFeatures, RecommenderConfig
from recsys.semantic_ids.residual_kmeans import choose_codebook_sizes
from recsys.storage import read_json, sha256_parts, write_json_atomically

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from benchmarks.decoding_parts import Request
    from benchmarks.table import Table

    Codes = npt.NDArray[np.int32]
    Vectors = npt.NDArray[np.float32]

CONFIG: Final = FOLDER / "crossover.yaml"
TABLES: Final[dict[str, Callable[[dict[str, Figure]], Table]]] = {
    "": times_table,
    "at": crossing_table,
    "memory": memory_table,
}
_AT_ONCE: Final = 2**18  # vectors made together
_QUERIES: Final = 64


def measure(request: Request) -> Report:
    """Every size; one that was measured with the same settings and commit is taken from the work folder."""
    settings = load_settings(CrossoverSettings, request.config or CONFIG, quick=request.quick)
    started, machine = now(), environment()
    figures: list[Figure] = []
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with faiss_threads(1):
            for items in settings.items:
                figures += _resumed(items, settings, machine["git_commit"], request.work / "crossover", request.say)
                gc.collect()
    finally:
        torch.set_num_threads(before)
    figures += arithmetic(figures, settings)
    figures += crossing(figures, settings)
    return Report(
        request.command, settings.model_dump(), [settings.seed], figures, started, machine | {"threads": 1}
    )  # fmt: skip


def _resumed(
    items: int, settings: CrossoverSettings, commit: str, work: Path, say: Callable[[str], None]
) -> list[Figure]:
    chosen = settings.model_dump(exclude={"items", "arithmetic"})
    key = sha256_parts([json.dumps(chosen, sort_keys=True), commit])[:12]
    path = work / f"items{items}-{key}.json"
    if path.exists():
        say(f"{items:,} items: measured before")
        return [Figure(**value) for value in read_json(path)]
    began = time.monotonic()
    figures = of_size(items, settings)
    write_json_atomically(path, [asdict(figure) for figure in figures])
    shown = [f"{f.name.split('.')[-2]} {f.value:.3g}" for f in figures if f.unit == "ms" and f.name.endswith(".ms")]
    say(f"{items:,} items, ms: {', '.join(shown)}; {time.monotonic() - began:.0f} s")
    return figures


def of_size(items: int, settings: CrossoverSettings) -> list[Figure]:
    """All figures of one size of the catalogue."""
    rng = np.random.default_rng(settings.seed)
    sizes = choose_codebook_sizes(items)
    codes = draw_codes(items, sizes, settings.skew, rng)
    histories = list(rng.integers(items, size=(settings.rounds, settings.history), dtype=np.int32))
    stem = f"decoding.crossover.items{items}"
    began = time.perf_counter()
    trie = SidTrie.build(codes, sizes)
    built = time.perf_counter() - began
    model = _trunk(codes, sizes, settings)
    began = time.perf_counter()
    nezha = NezhaDecoder(model, trie)
    built += time.perf_counter() - began
    nodes = [trie.nodes(depth) for depth in range(1, trie.levels + 1)]
    head = sum(parameter.numel() * parameter.element_size() for parameter in model.head.parameters())
    note = f"codebooks of {sizes[0]}, prefixes per depth {nodes}"
    figures = [
        Figure(f"{stem}.nezha.bytes", array_bytes(trie) + head, "bytes", note=f"trie and head; {note}"),
        Figure(f"{stem}.nezha.build_s", built, "s", note="trie and decoder"),
        _nezha_update(f"{stem}.nezha", trie, settings, rng),
    ]
    vectors = item_vectors(codes, sizes, settings, rng)
    queries = vectors[rng.integers(items, size=_QUERIES)]
    queries += settings.spread[-1] * rng.standard_normal(queries.shape, dtype=np.float32)
    del codes
    read = prefill(model, histories)
    calls: dict[str, Callable[[int], object]] = {"prefill": read}
    for beam in settings.beams:
        calls[f"nezha_beam{beam}"] = whole(nezha, histories, k=min(beam, settings.answer), beam=beam)
    exact = _exact(vectors, settings.answer)
    calls["flat"] = _behind(read, exact, queries)
    figures += [
        Figure(f"{stem}.flat.bytes", vectors.nbytes, "bytes", note="item vectors, float32"),
        _write_update(f"{stem}.flat", vectors, settings, rng),
    ]
    for name, build in BUILDERS.items():
        if name == "ann_hnsw" and items > settings.ann.hnsw_most:
            continue
        began = time.perf_counter()
        index = build(vectors, settings.ann)
        figures += [
            Figure(f"{stem}.{name}.build_s", time.perf_counter() - began, "s", note="one thread"),
            Figure(f"{stem}.{name}.bytes", index_bytes(index), "bytes"),
            _agreement(f"{stem}.{name}", index, exact, queries, settings.answer),
            _index_update(f"{stem}.{name}", index, vectors, settings, rng),
        ]
        calls[name] = _behind(read, _searching(index, settings.answer), queries)
    times = take_turns(calls, dict.fromkeys(calls, settings.rounds), rng)
    return [middle(f"{stem}.{name}.ms", values, "ms", rng) for name, values in times.items()] + figures


def _trunk(codes: Codes, sizes: tuple[int, ...], settings: CrossoverSettings) -> CompactRecommender:
    """A compact model whose input are the codes alone: a table of item vectors would not fit beside the rivals."""
    none = np.zeros((len(codes), 0), dtype=np.float32)
    config = RecommenderConfig(
        sizes,
        len(codes),
        0,
        0,
        use_item_id=False,
        d_model=settings.d_model,
        layers=settings.layers,
        heads=settings.heads,
    )
    torch.manual_seed(settings.seed)
    model = CompactRecommender(config, ItemFeatures(codes, none, none, np.ones(len(codes), np.int64))).eval()
    model.freeze()
    return model


def item_vectors(
    codes: Codes, sizes: tuple[int, ...], settings: CrossoverSettings, rng: np.random.Generator
) -> Vectors:
    """(I, d): what every code adds, and what the item itself adds."""
    width = settings.d_model
    tables = [
        spread * rng.standard_normal((size, width), dtype=np.float32)
        for size, spread in zip(sizes, settings.spread, strict=False)
    ]
    vectors = np.empty((len(codes), width), dtype=np.float32)
    for begin in range(0, len(codes), _AT_ONCE):
        part = vectors[begin : begin + _AT_ONCE]
        rng.standard_normal(part.shape, dtype=np.float32, out=part)
        part *= settings.spread[-1]
        for level, table in enumerate(tables):
            part += table[codes[begin : begin + _AT_ONCE, level]]
    return vectors


def _exact(vectors: Vectors, answer: int) -> Callable[[Vectors], npt.NDArray[np.int64]]:
    items = torch.from_numpy(vectors)

    def search(query: Vectors) -> npt.NDArray[np.int64]:
        with torch.inference_mode():
            best: npt.NDArray[np.int64] = torch.mv(items, torch.from_numpy(query)).topk(answer).indices.numpy()
        return best

    return search


def _searching(index: Any, answer: int) -> Callable[[Vectors], object]:
    return lambda query: index.search(query[None], answer)


def _behind(
    read: Callable[[int], object], search: Callable[[Vectors], object], queries: Vectors
) -> Callable[[int], object]:
    """The trunk's forward and then a search, whose query is one that lies near an item."""

    def call(number: int) -> object:
        read(number)
        return search(queries[number % len(queries)])

    return call


def _agreement(
    stem: str, index: Any, exact: Callable[[Vectors], npt.NDArray[np.int64]], queries: Vectors, answer: int
) -> Figure:
    _, found = index.search(queries, answer)
    shares = [len(np.intersect1d(exact(query), row)) / answer for query, row in zip(queries, found, strict=True)]
    return Figure(f"{stem}.agreement@{answer}", float(np.mean(shares)), "share", n=len(queries), note="with flat")


def _nezha_update(stem: str, trie: SidTrie, settings: CrossoverSettings, rng: np.random.Generator) -> Figure:
    segments = Segments(trie)
    segments.put("stock", np.ones(trie.items, dtype=bool))
    segments.live(["stock"])
    rows = rng.integers(trie.items, size=settings.updates)
    times = np.array([_timed(lambda row=row: segments.change("stock", remove=np.array([row]))) for row in rows])  # type: ignore[misc]
    note = "median; an item out of a segment, seen by the next request; a new item enters with the next bundle"
    return middle(f"{stem}.update_ms", times, "ms", rng, note)


def _write_update(stem: str, vectors: Vectors, settings: CrossoverSettings, rng: np.random.Generator) -> Figure:
    rows = rng.integers(len(vectors), size=settings.updates)
    times = np.array([_timed(lambda row=row: vectors.__setitem__(row, vectors[0].copy())) for row in rows])  # type: ignore[misc]
    return middle(f"{stem}.update_ms", times, "ms", rng, "median; a vector is overwritten")


def _index_update(
    stem: str, index: Any, vectors: Vectors, settings: CrossoverSettings, rng: np.random.Generator
) -> Figure:
    rows = rng.integers(len(vectors), size=settings.updates)
    times = np.array([_timed(lambda row=row: index.add(vectors[row : row + 1])) for row in rows])  # type: ignore[misc]
    gone = "faiss removes nothing from a graph" if "hnsw" in stem else "a removal passes over the lists"
    return middle(f"{stem}.update_ms", times, "ms", rng, f"median; a vector is added; {gone}")


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - began) / 1e6


def array_bytes(value: object) -> int:
    """Bytes of all arrays in a dataclass."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, tuple):
        return sum(array_bytes(one) for one in value)
    if is_dataclass(value):
        return sum(array_bytes(getattr(value, field.name)) for field in fields(value))
    return 0


def arithmetic(figures: list[Figure], settings: CrossoverSettings) -> list[Figure]:
    """What a larger catalogue would take, from the largest measured one.

    Bytes grow with the items, and so does the time of a dot product that reads them all. `nezha` looks at the children
    of its beam only; its time is not foretold.
    """
    named = {figure.name: figure for figure in figures}
    largest, wanted = max(settings.items), settings.arithmetic
    factor = wanted / largest
    note = f"arithmetic: {factor:g} x that of {largest:,} items"
    result = []
    for name in ("nezha.bytes", "flat.bytes", "flat.ms", "ann_ivfpq.bytes"):
        known = named[f"decoding.crossover.items{largest}.{name}"]
        result.append(Figure(f"decoding.crossover.items{wanted}.{name}", known.value * factor, known.unit, note=note))
    return result
