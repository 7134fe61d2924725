"""What becomes of items whose vectors get the same codes.

* `reassign`: the last code is given anew inside each prefix, so that the summed squared distance is least among the
  assignments without a collision.
* `extra_digit`: the codes stay, and a further level numbers the items that share them (TIGER, arXiv:2305.05065,
  section 3.1).
* `buckets`: the codes stay, and the items share them; serving ranks the items of a bucket by their training
  interactions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

if TYPE_CHECKING:
    import numpy.typing as npt

    from recsys.semantic_ids.settings import Policy
    from recsys.semantic_ids.tokenizer import Tokenizer


class Settled(NamedTuple):
    """Semantic IDs after a collision policy.

    Attributes:
        codes: (N, L) int32; (N, L + 1) with an extra digit.
        sizes: of the codebooks, one per column.
    """

    codes: npt.NDArray[np.int32]
    sizes: tuple[int, ...]


def settle(
    policy: Policy, codes: npt.NDArray[np.int32], residuals: npt.NDArray[np.float32], tokenizer: Tokenizer
) -> Settled:
    """Apply a collision policy to all items of a new tokenizer.

    Args:
        policy: which.
        codes: (N, L) what the tokenizer gave.
        residuals: (N, d_L) what it gave beside them.
        tokenizer: the giver.
    """
    if policy == "reassign":
        return Settled(reassign_last_level(codes, residuals, tokenizer.centroids[-1]), tokenizer.sizes)
    if policy == "buckets":
        return Settled(codes, tokenizer.sizes)
    _, sharing = np.unique(codes, axis=0, return_counts=True)
    # Room for as many items again as share the fullest semantic ID today.
    size = 1 << int(2 * sharing.max() - 1).bit_length()
    nothing = np.empty((0, codes.shape[1] + 1), dtype=np.int32)
    return Settled(_append_digit(codes, nothing, size), (*tokenizer.sizes, size))


def place_new(
    policy: Policy,
    vectors: npt.NDArray[np.float32],
    tokenizer: Tokenizer,
    taken: npt.NDArray[np.int32],
    sizes: tuple[int, ...],
) -> npt.NDArray[np.int32]:
    """Semantic IDs for items that come after the tokenizer was built, under its policy.

    Args:
        policy: of this tokenizer version.
        vectors: (N, D) embeddings of the new items.
        tokenizer: of this version.
        taken: (M, L or L + 1) every semantic ID ever given in this version, dead ones included.
        sizes: of the codebooks, as `Settled` had them.

    Returns:
        (N, L or L + 1) codes. Where no free code is left, an item shares one.
    """
    if policy == "reassign":
        return assign_new(vectors, tokenizer, taken)
    codes, _ = tokenizer.encode(vectors)
    return codes if policy == "buckets" else _append_digit(codes, taken, sizes[-1])


def _append_digit(codes: npt.NDArray[np.int32], taken: npt.NDArray[np.int32], size: int) -> npt.NDArray[np.int32]:
    """Give each item (N, L) the smallest digit that its codes have left; without one, the digit shared least."""
    used: dict[tuple[int, ...], list[int]] = {}
    for *prefix, digit in taken.tolist():
        used.setdefault(tuple(prefix), [0] * size)[digit] += 1
    digits = np.empty((len(codes), 1), dtype=np.int32)
    for row, code in enumerate(codes.tolist()):
        shared = used.setdefault(tuple(code), [0] * size)
        digits[row] = shared.index(min(shared))
        shared[int(digits[row, 0])] += 1
    return np.concatenate([codes, digits], axis=1)


def reassign_last_level(
    codes: npt.NDArray[np.int32], residuals: npt.NDArray[np.float32], last: npt.NDArray[np.float32]
) -> npt.NDArray[np.int32]:
    """Give the items that share a prefix different last codes, at the least summed squared distance.

    A prefix with n items and T codes gets at most ceil(n / T) items per code, so that every semantic ID is unique
    while n <= T.

    Args:
        codes: (N, L) greedy codes.
        residuals: (N, D) what the first L - 1 levels left over.
        last: (T, D) last codebook.

    Returns:
        (N, L) codes; only the last column differs.
    """
    result = codes.copy()
    size = len(last)
    order = np.lexsort(codes.T[::-1])
    prefixes = codes[order, :-1]
    starts = np.flatnonzero(np.r_[True, (prefixes[1:] != prefixes[:-1]).any(axis=1)])
    for group in np.split(order, starts[1:]):
        if len(np.unique(codes[group, -1])) == len(group):
            continue
        capacity = -(-len(group) // size)
        distance = ((residuals[group, None, :] - last[None, :, :]) ** 2).sum(axis=2)  # (n, T)
        rows, columns = linear_sum_assignment(np.tile(distance, (1, capacity)))
        result[group[rows], -1] = (columns % size).astype(np.int32)
    return result


def assign_new(
    vectors: npt.NDArray[np.float32], tokenizer: Tokenizer, taken: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    """Semantic IDs for items that come after the tokenizer was built.

    Each takes the nearest free last code in its greedy prefix, in the order given; where the prefix is full it joins
    the bucket of its nearest code.

    Args:
        vectors: (N, D) embeddings of the new items.
        tokenizer: of this version.
        taken: (M, L) every semantic ID ever given in this version, dead ones included.

    Returns:
        (N, L) codes.
    """
    codes, residuals = tokenizer.encode(vectors)
    last = tokenizer.centroids[-1]
    used: dict[tuple[int, ...], set[int]] = {}
    for row in taken.tolist():
        used.setdefault(tuple(row[:-1]), set()).add(row[-1])
    for row, residual in zip(codes, residuals, strict=True):
        occupied = used.setdefault(tuple(row[:-1].tolist()), set())
        nearest = np.argsort(((residual - last) ** 2).sum(axis=1), kind="stable")
        row[-1] = next((code for code in nearest.tolist() if code not in occupied), int(nearest[0]))
        occupied.add(int(row[-1]))
    return codes
