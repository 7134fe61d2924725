"""How good semantic IDs are before any model is trained on them: code use, collisions, purity, neighbours kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import faiss
import numpy as np

from recsys.errors import DataError
from recsys.semantic_ids.fusion import unit_length

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Groups = npt.NDArray[np.int64]

_NONE = -1


class LevelQuality(NamedTuple):
    """One level of the semantic IDs; what cannot be measured is None.

    Attributes:
        size: T_l.
        used: codes that an item has.
        entropy: of the codes over the items, in bits; at most log2 T_l.
        evenness: 2^entropy / T_l, the share of a codebook that is used evenly and carries as much.
        prefixes: different ones of l codes.
        children_mean: prefixes of l codes per prefix of l - 1.
        children_max: of the prefix that has most.
        purity: share of items whose category is the commonest one of their prefix of l codes, over prefixes with at
            least two items.
        purity_chance: the same after dealing the categories out anew at random.
        kept: share of an item's nearest neighbours that share its first l codes.
        kept_chance: the same for items drawn at random.
        unexplained: share of the vectors' variance that is left inside the prefixes of l codes.
    """

    size: int
    used: int
    entropy: float
    evenness: float
    prefixes: int
    children_mean: float
    children_max: int
    purity: float | None
    purity_chance: float | None
    kept: float | None
    kept_chance: float | None
    unexplained: float | None


class SidQuality(NamedTuple):
    """All levels, and the semantic IDs as a whole.

    Attributes:
        items: I.
        distinct: different semantic IDs.
        colliding: items that share theirs.
        largest_bucket: items of the semantic ID that is shared most.
        reconstruction_error: squared error of the tokenizer's reconstruction per variance of the vectors; None
            without a tokenizer.
        levels: L of them.
    """

    items: int
    distinct: int
    colliding: int
    largest_bucket: int
    reconstruction_error: float | None
    levels: tuple[LevelQuality, ...]


def measure_sids(
    codes: npt.NDArray[np.int32],
    sizes: tuple[int, ...],
    *,
    vectors: Floats | None = None,
    reconstructed: Floats | None = None,
    categories: Sequence[str | None] | None = None,
    neighbours: int = 10,
    sample: int = 2000,
    seed: int = 0,
) -> SidQuality:
    """Measure semantic IDs.

    Args:
        codes: (I, L).
        sizes: T_1..T_L.
        vectors: (I, D) that say which items are alike; zero rows have no neighbours.
        reconstructed: (I, D) what a tokenizer makes of the codes.
        categories: of the items, None where an item has none.
        neighbours: nearest by cosine that are looked at, per item.
        sample: of so many items at most, drawn at random.
        seed: of the sample, and of the categories dealt out anew.

    Raises:
        DataError: no items, or codes outside their codebook.
    """
    if len(codes) == 0:
        raise DataError("no semantic IDs to measure", field="items", value=0)
    if (codes < 0).any() or (codes >= np.asarray(sizes)).any():
        raise DataError("codes outside their codebook", field="codebook_sizes", value=sizes)
    groups = prefix_groups(codes)
    rng = np.random.default_rng(seed)
    none = [(None, None)] * len(groups)
    purity = none if categories is None else _purities(groups, categories, rng)
    kept = none if vectors is None else _kept(groups, vectors, neighbours, sample, rng)
    variance = None if vectors is None else _variance(vectors)
    levels = []
    for level, size in enumerate(sizes):
        used, entropy = _use(codes[:, level])
        children = children_counts(groups, level)
        left = None if vectors is None or not variance else _inside(groups[level], vectors) / variance
        levels.append(
            LevelQuality(
                size,
                used,
                entropy,
                2**entropy / size,
                int(groups[level].max()) + 1,
                float(children.mean()),
                int(children.max()),
                *purity[level],
                *kept[level],
                left,
            )
        )
    buckets = np.bincount(groups[-1])
    error = None
    if vectors is not None and reconstructed is not None and variance:
        error = float(((vectors - reconstructed).astype(np.float64) ** 2).sum()) / variance
    return SidQuality(
        len(codes), len(buckets), int(buckets[buckets > 1].sum()), int(buckets.max()), error, tuple(levels)
    )


def _use(codes: npt.NDArray[np.int32]) -> tuple[int, float]:
    """How many codes (I,) are in use, and the entropy of their use in bits."""
    _, counts = np.unique(codes, return_counts=True)
    share = counts / len(codes)
    return len(counts), float(-(share * np.log2(share)).sum()) + 0.0


def prefix_groups(codes: npt.NDArray[np.int32]) -> list[Groups]:
    """Per depth 1..L (I,): the number of each item's prefix, dense and in lexicographic order."""
    groups: list[Groups] = []
    above = np.zeros(len(codes), dtype=np.int64)
    for level in range(codes.shape[1]):
        size = int(codes[:, level].max()) + 1
        _, above = np.unique(above * size + codes[:, level], return_inverse=True)
        groups.append(above)
    return groups


def children_counts(groups: Sequence[Groups], level: int) -> Groups:
    """(n,) how many prefixes of `level` + 1 codes each prefix of `level` codes has, from `prefix_groups`."""
    _, first = np.unique(groups[level], return_index=True)
    parents = groups[level - 1][first] if level else np.zeros(len(first), dtype=np.int64)
    return np.bincount(parents)


def _purities(
    groups: Sequence[Groups], categories: Sequence[str | None], rng: np.random.Generator
) -> list[tuple[float | None, float | None]]:
    names = {name: number for number, name in enumerate(sorted({name for name in categories if name is not None}))}
    numbers = np.array([_NONE if name is None else names[name] for name in categories], dtype=np.int64)
    rows = np.flatnonzero(numbers != _NONE)
    known = numbers[rows]
    shuffled = rng.permutation(known)
    return [(_purity(group[rows], known), _purity(group[rows], shuffled)) for group in groups]


def _purity(group: Groups, category: Groups) -> float | None:
    if len(group) == 0:
        return None
    pairs, counts = np.unique(np.stack([group, category]), axis=1, return_counts=True)
    best = np.zeros(int(group.max()) + 1, dtype=np.int64)
    np.maximum.at(best, pairs[0], counts)
    items = np.bincount(group)
    several = items > 1
    return float(best[several].sum() / items[several].sum()) if several.any() else None


def _kept(
    groups: Sequence[Groups], vectors: Floats, neighbours: int, sample: int, rng: np.random.Generator
) -> list[tuple[float | None, float | None]]:
    known = np.flatnonzero(vectors.any(axis=1))
    count = min(neighbours, len(known) - 1)
    if count < 1:
        return [(None, None)] * len(groups)
    unit = np.ascontiguousarray(unit_length(vectors[known]), dtype=np.float32)
    drawn = np.sort(rng.choice(len(known), min(sample, len(known)), replace=False))  # (S,)
    index = faiss.IndexFlatIP(unit.shape[1])
    index.add(unit)
    _, found = index.search(unit[drawn], count + 1)  # (S, count + 1), the item itself most often first
    others = found != drawn[:, None]
    # Where copies of an item push it out of its own list, the last one is left out instead.
    others[others.all(axis=1), -1] = False
    near = found[others].reshape(len(drawn), count)
    result: list[tuple[float | None, float | None]] = []
    for group in groups:
        own = group[known]
        same = np.bincount(own)[own[drawn]] - 1
        kept = float((own[near] == own[drawn][:, None]).mean())
        result.append((kept, float((same / (len(known) - 1)).mean())))
    return result


def _variance(vectors: Floats) -> float:
    return float(((vectors - vectors.mean(axis=0)).astype(np.float64) ** 2).sum())


def _inside(group: Groups, vectors: Floats) -> float:
    """Summed squared distance of the vectors to the mean of their group."""
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    ordered = vectors[order].astype(np.float64)
    means = np.add.reduceat(ordered, starts, axis=0) / np.bincount(group)[:, None]
    return float(((ordered - means[group[order]]) ** 2).sum())
