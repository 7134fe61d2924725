"""`windfire bench retrieval`: build time, bytes, recall and times of the indexes over many vectors.

The vectors are drawn from a mixture that is fitted to real ones: k-means clusters, each with its mean and its whole
covariance (a draw is the mean plus a normal combination of the cluster's centred members, which has exactly their
covariance and needs no matrix of it). Real vectors have near neighbours that are more alike than this; what the indexes
have to find apart is real in its clusters and directions, and of any number.

Indexes over shorter vectors are made by a compressor that saw the real vectors and no labels, and are compared with the
exact answer over the vectors as they are.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, Self

import faiss
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from threadpoolctl import threadpool_limits

from benchmarks.decoding_parts.timing import middle, take_turns
from benchmarks.figures import ROOT, Figure, Report, environment, now
from benchmarks.quality import Quality
from benchmarks.quality_settings import QualitySettings
from benchmarks.settings_file import load_settings
from benchmarks.table import Table
from recsys.datasets.prepared import PreparedData
from recsys.errors import DataError
from recsys.retrieval.checks import unit_length
from recsys.retrieval.compressing import open_compressor
from recsys.retrieval.files import load_index, read_origin, save_index
from recsys.retrieval.folder import vectors_checksum
from recsys.retrieval.settings import IndexSettings
from recsys.retrieval.vector_index import build_index
from recsys.storage import sha256_parts
from training.smec.data import VectorData
from training.smec.settings import SmecSettings
from training.smec.trainer import train_smec

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from recsys.retrieval.compressing import Shortener
    from recsys.retrieval.vector_index import VectorIndex

    Vectors = npt.NDArray[np.float32]
    Mask = npt.NDArray[np.bool_] | None

CONFIG: Final = Path(__file__).with_name("retrieval.yaml")
_AT_ONCE: Final = 2**14  # vectors drawn, or compared with the queries, together
_PERCENT: Final = 100
_FOUND: Final = ("recall", "within")  # figures whose name ends with how many were looked at
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]


class RetrievalSettings(BaseModel):
    """The whole benchmark; retrieval.yaml says what each field is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int
    datasets: Annotated[list[str], Field(min_length=1)]
    components: Positive
    items: Positive
    queries: Positive
    rounds: Positive
    answer: Positive
    shares: list[Share]
    indexes: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    dimensions: list[Positive]
    short: list[str]
    second: list[Positive]
    within: Positive
    compressor: dict[str, Any]

    @model_validator(mode="after")
    def _known(self) -> Self:
        if unknown := set(self.short) - set(self.indexes):
            raise ValueError(f"no index is called {', '.join(sorted(unknown))}")
        if unknown_widths := set(self.second) - set(self.dimensions):
            raise ValueError(f"a second look at dimensions that are not measured: {sorted(unknown_widths)}")
        return self


class _Arm(NamedTuple):
    """An index where it lies, the queries as it takes them, and the seconds of its build."""

    stem: str
    held: VectorIndex
    queries: Vectors
    folder: Path
    seconds: float


def bench(
    settings: RetrievalSettings, command: str, work: Path, *, say: Callable[[str], None], real: Vectors | None = None
) -> Report:
    """Measure every index; one that was built with the same settings is taken from the work folder.

    Args:
        settings: of retrieval.yaml.
        command: the command line that repeats this, for the report.
        work: keeps the prepared data sets and the built indexes.
        say: told in one line what was done.
        real: (N, D) instead of the data sets' text vectors.

    Raises:
        DataError: a data set is not there.
    """
    started = now()
    rng = np.random.default_rng(settings.seed)
    with threadpool_limits(1):
        found = real_vectors(settings, work, say) if real is None else real
        mixture = Mixture(found, settings.components, settings.seed)
        vectors = mixture.draw(settings.items, rng)
        queries = mixture.draw(settings.queries, rng)
        say(f"{settings.items:,} vectors of dimension {vectors.shape[1]} from {len(found):,} real ones")
        masks: dict[str, Mask] = {"": None}
        masks |= {f"share{_PERCENT * share:g}.": rng.random(settings.items) < share for share in settings.shares}
        exact = {name: nearest(vectors, queries, mask, settings.answer) for name, mask in masks.items()}
        figures: list[Figure] = []
        run = fitted(settings, found, work, say) if settings.dimensions else work
        full = vectors.shape[1]
        arms = [_arm(settings, name, vectors, full, queries, work, say) for name in settings.indexes]
        for width in settings.dimensions:
            shortener = open_compressor(run / "model" / f"compressor_{width}.onnx")
            held, asked = shortener(vectors), shortener(queries)
            for name in settings.short:
                arms.append(_arm(settings, name, held, width, asked, work, say))
                if width in settings.second:
                    arms.append(_arm(settings, name, vectors, width, queries, work, say, shortener))
        for arm in arms:
            figures += _sizes(arm, settings.items)
        for prefix, mask in masks.items():
            for arm in arms:
                figures += _recall(arm, prefix, mask, exact[prefix], settings)
            figures += _times(settings, arms, prefix, mask, rng)
    machine = environment() | {"threads": 1}
    return Report(command, settings.model_dump(), [settings.seed], figures, started, machine)


class Mixture:
    """A mixture of normal distributions on the unit sphere, fitted by k-means.

    Args:
        vectors: (N, D); zero rows are left out.
        components: clusters; fewer where there are few vectors.
        seed: of the clustering.

    Raises:
        DataError: fewer than two vectors.
    """

    def __init__(self, vectors: Vectors, components: int, seed: int) -> None:
        unit = unit_length(np.ascontiguousarray(vectors, dtype=np.float32))
        unit = unit[unit.any(axis=1)]
        if len(unit) < 2:
            raise DataError("a mixture wants at least two vectors", field="vectors", value=len(unit))
        count = min(components, len(unit) // 2)
        clusters = faiss.Kmeans(unit.shape[1], count, seed=seed, niter=20, min_points_per_centroid=1)
        clusters.train(unit)
        nearest_one = clusters.index.search(unit, 1)[1][:, 0]  # (N,)
        self._members = [unit[nearest_one == number] for number in range(count)]
        sizes = np.array([len(members) for members in self._members])
        self._weights = sizes / sizes.sum()

    def draw(self, count: int, rng: np.random.Generator) -> Vectors:
        """(count, D) unit vectors, in a drawn order of the clusters."""
        which = rng.choice(len(self._members), size=count, p=self._weights)
        drawn = np.empty((count, self._members[0].shape[1]), dtype=np.float32)
        for number, members in enumerate(self._members):
            mean = members.mean(axis=0) if len(members) else 0.0
            centred = (members - mean) / np.sqrt(max(1, len(members)))
            rows = np.flatnonzero(which == number)
            for begin in range(0, len(rows), _AT_ONCE):
                part = rows[begin : begin + _AT_ONCE]
                noise = rng.standard_normal((len(part), len(members)), dtype=np.float32)
                drawn[part] = mean + noise @ centred
        return unit_length(drawn)


def real_vectors(settings: RetrievalSettings, work: Path, say: Callable[[str], None]) -> Vectors:
    """(N, D) text vectors of the data sets, prepared unless they are."""
    sources = Path(os.environ.get("WINDFIRE_DATA", ROOT.parent / "shared" / "data"))
    quality = Quality(QualitySettings.load(), work, sources, say)
    parts = []
    for dataset in settings.datasets:
        quality.prepare(dataset)
        parts.append(PreparedData.load(work / "data" / dataset / "prepared").text)
    return np.concatenate(parts)


def _arm(
    settings: RetrievalSettings,
    name: str,
    vectors: Vectors,
    width: int,
    queries: Vectors,
    work: Path,
    say: Callable[[str], None],
    shortener: Shortener | None = None,
) -> _Arm:
    """One index, built unless it is there; with a shortener whole vectors are given and searched by shorter ones."""
    label = name if shortener is None else f"{name}_second"
    folder = work / "indexes" / f"{label}_{width}"
    seconds = _built(vectors, IndexSettings.parse(settings.indexes[name]), folder, say, shortener)
    stem = f"retrieval.items{settings.items}.d{width}.{label}"
    return _Arm(stem, load_index(folder, verify=False), queries, folder, seconds)


def fitted(settings: RetrievalSettings, vectors: Vectors, work: Path, say: Callable[[str], None]) -> Path:
    """The run of a SMEC on the real vectors, without labels; once for the same vectors and settings.

    Raises:
        ConfigError: the vectors cannot be halved down to the smallest dimension.
    """
    halvings = max(1, round(math.log2(vectors.shape[1] / min(settings.dimensions))))
    chosen = SmecSettings.parse({**settings.compressor, "halvings": halvings})
    key = sha256_parts([vectors_checksum(vectors), chosen.model_dump_json(), str(settings.seed)])
    run = work / "compressors" / key[:16]
    manifest = train_smec(VectorData.unlabelled(vectors), chosen, run, seed=settings.seed)
    say(f"compressor fitted in {manifest['cpu_seconds']:.0f} s of processor time")
    return run


def nearest(vectors: Vectors, queries: Vectors, mask: Mask, k: int) -> npt.NDArray[np.int64]:
    """(Q, k) rows of the k largest inner products, in any order, by comparing everything."""
    rows = np.arange(len(vectors)) if mask is None else np.flatnonzero(mask)
    k = min(k, len(rows))
    best = np.empty((len(queries), 0), dtype=np.int64)
    scores = np.empty((len(queries), 0), dtype=np.float32)
    for begin in range(0, len(rows), _AT_ONCE):
        part = rows[begin : begin + _AT_ONCE]
        scores = np.concatenate([scores, queries @ vectors[part].T], axis=1)
        best = np.concatenate([best, np.broadcast_to(part, (len(queries), len(part)))], axis=1)
        if scores.shape[1] > k:
            kept = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            scores, best = np.take_along_axis(scores, kept, 1), np.take_along_axis(best, kept, 1)
    return best


def _built(
    vectors: Vectors,
    settings: IndexSettings,
    folder: Path,
    say: Callable[[str], None],
    shortener: Shortener | None,
) -> float:
    """Processor seconds of the build, now or when it was made."""
    parts = [vectors_checksum(vectors), json.dumps(settings.model_dump(), sort_keys=True)]
    key = sha256_parts(parts if shortener is None else [*parts, shortener.graph])
    try:
        origin = read_origin(folder)
    except DataError:
        origin = {}
    if origin.get("key") != key:
        began = time.process_time()
        index = build_index(vectors, settings, shortener=shortener)
        origin = {"key": key, "seconds": time.process_time() - began}
        save_index(index, folder, origin=origin)
    seconds = float(origin["seconds"])
    say(f"{folder.name}: built in {seconds:.1f} s")
    return seconds


def _sizes(arm: _Arm, items: int) -> list[Figure]:
    stem = arm.stem
    sizes = {path.name: path.stat().st_size for path in arm.folder.iterdir()}
    searched = sum(size for name, size in sizes.items() if name != "vectors.npy")
    return [
        Figure(f"{stem}.build_s", arm.seconds, "s", n=items, note="one thread, processor time"),
        Figure(f"{stem}.bytes_per_item", searched / items, "bytes", n=items, note="what a search walks through"),
        Figure(
            f"{stem}.disk_bytes_per_item",
            sum(sizes.values()) / items,
            "bytes",
            n=items,
            note="with the vectors that candidates are scored by, mapped from the disk",
        ),
    ]


def _recall(
    arm: _Arm, prefix: str, mask: Mask, exact: npt.NDArray[np.int64], settings: RetrievalSettings
) -> list[Figure]:
    """Of the exact answer over the vectors as they are, among as many and among `within` times as many."""
    k, deep = settings.answer, settings.answer * settings.within
    few, many = [], []
    for query, true in zip(arm.queries, exact, strict=True):
        few.append(np.isin(true, arm.held.search(query, k, mask).rows).mean())
        many.append(np.isin(true, arm.held.search(query, deep, mask).rows).mean())
    stem, n = f"{arm.stem}.{prefix}", len(arm.queries)
    note = "of the exact answer at full dimension"
    return [
        Figure(f"{stem}recall@{k}", float(np.mean(few)), "share", n=n, note=note),
        Figure(f"{stem}within@{deep}", float(np.mean(many)), "share", n=n, note=f"{note}, {k} items"),
    ]


def _times(
    settings: RetrievalSettings, arms: list[_Arm], prefix: str, mask: Mask, rng: np.random.Generator
) -> list[Figure]:
    calls: dict[str, Callable[[int], object]] = {
        arm.stem: lambda number, arm=arm: arm.held.search(  # type: ignore[misc]
            arm.queries[number % len(arm.queries)], settings.answer, mask
        )
        for arm in arms
    }
    figures = []
    for stem, values in take_turns(calls, dict.fromkeys(calls, settings.rounds), rng).items():
        high = float(np.percentile(values, 99))
        figures += [
            middle(f"{stem}.{prefix}p50_ms", values, "ms", rng),
            Figure(f"{stem}.{prefix}p99_ms", high, "ms", n=len(values), note="over rounds"),
        ]
    return figures


def is_mark(rest: str) -> bool:
    """Whether a table has the mark that ends so."""
    return not rest


def marked_table(rest: str, report: Report) -> Table:
    """Of the mark `retrieval`."""
    del rest
    return retrieval_table({figure.name: figure for figure in report.figures})


def retrieval_table(figures: dict[str, Figure]) -> Table:
    """One row per index."""
    stems = [name.removesuffix(".build_s") for name in figures if name.endswith(".build_s")]
    shares = sorted(
        {part for name in figures for part in name.split(".") if part.startswith("share")},
        key=lambda part: -float(part.removeprefix("share")),
    )
    found, deep = (next((name.split("@")[1] for name in figures if f"{what}@" in name), "") for what in _FOUND)
    header = ["index", "build, s", "bytes per item", "with vectors"]
    for share in ("", *shares):
        where = f", {share.removeprefix('share')} % eligible" if share else ""
        header += [f"recall@{found}{where}", *([] if share else [f"in the nearest {deep}"]), "p50, ms", "p99, ms"]
    rows = []
    for stem in stems:
        _, items, width, name = stem.split(".")
        cells = [f"{figures[f'{stem}.{part}'].value:.0f}" for part in ("bytes_per_item", "disk_bytes_per_item")]
        for share in ("", *(f"{share}." for share in shares)):
            recall = next(f.value for n, f in figures.items() if n.startswith(f"{stem}.{share}recall@"))
            times = [f"{figures[f'{stem}.{share}{part}_ms'].value:.3g}" for part in ("p50", "p99")]
            within = [next(f.value for n, f in figures.items() if n.startswith(f"{stem}.{share}within@"))]
            cells += [f"{recall:.3f}", *([] if share else [f"{value:.3f}" for value in within]), *times]
        shown = f"{name}, {int(items.removeprefix('items')):,} x {width.removeprefix('d')}"
        rows.append([shown, f"{figures[f'{stem}.build_s'].value:.3g}", *cells])
    return Table("indexes over drawn vectors, one thread, medians over rounds", header, rows)


def load(path: Path | None, *, quick: bool) -> RetrievalSettings:
    """Read retrieval.yaml, or another file of its form.

    Raises:
        ConfigError: not YAML, or a field that is unknown or out of range.
    """
    return load_settings(RetrievalSettings, path or CONFIG, quick=quick)
