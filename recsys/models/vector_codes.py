"""Vectors as float16 and as int8 with one scale per vector: half and a quarter of the memory, the error bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from recsys.errors import InputError

if TYPE_CHECKING:
    import numpy.typing as npt

INT8_STEPS: Final = 127
"""Codes are -127..127, so that a vector and its negative have codes of the same size."""


class Int8Codes(NamedTuple):
    """Vectors as 8-bit integers.

    Attributes:
        codes: (B, D) int8, -127..127.
        scales: (B,) float32; a component is its code times its vector's scale.
    """

    codes: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]


def to_float16(vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float16]:
    """Round to half precision, the nearest and half to even.

    A component of at least 2^-14 is off by at most 2^-11 of itself, a smaller one by at most 2^-25.

    Args:
        vectors: (B, D).

    Raises:
        InputError: a component is no finite number, or rounds beyond 65504, the largest of half precision.
    """
    _refuse_unusable(vectors)
    with np.errstate(over="ignore"):
        rounded = vectors.astype(np.float16)
    if len(bad := np.flatnonzero(~np.isfinite(rounded).all(axis=1))):
        raise InputError(
            "a component is beyond the range of float16",
            field="vectors",
            value=f"row {bad[0]}: {np.abs(vectors[bad[0]]).max()}",
            remedy="scale the vectors to unit length",
        )
    return rounded


def to_int8(vectors: npt.NDArray[np.floating]) -> Int8Codes:
    """Round every vector to 255 equal steps that reach its largest component.

    A component is off by at most half a scale, which is 1/254 of the vector's largest component (more where that is
    below 1e-36, where float32 has too few digits for the scale).

    Args:
        vectors: (B, D).

    Raises:
        InputError: a component is no finite number, or beyond the range of float32.
    """
    _refuse_unusable(vectors)
    largest = np.abs(vectors).max(axis=1, initial=0.0).astype(np.float64)  # (B,)
    if len(bad := np.flatnonzero(largest > np.finfo(np.float32).max)):
        raise InputError("a component is beyond float32", field="vectors", value=f"row {bad[0]}: {largest[bad[0]]}")
    scales = (largest / INT8_STEPS).astype(np.float32)
    # a scale that float32 rounds to 0 belongs to a vector that is 0 in every respect but its name
    divisors = np.where(scales > 0, scales, 1).astype(np.float64)
    codes = np.rint(vectors / divisors[:, None])
    return Int8Codes(np.clip(codes, -INT8_STEPS, INT8_STEPS).astype(np.int8), scales)


def from_int8(coded: Int8Codes) -> npt.NDArray[np.float32]:
    """The vectors that the codes stand for: (B, D) float32."""
    restored: npt.NDArray[np.float32] = coded.codes.astype(np.float32) * coded.scales[:, None]
    return restored


def int8_similarities(queries: Int8Codes, documents: Int8Codes) -> npt.NDArray[np.float32]:
    """Dot products of coded vectors, without restoring them.

    Args:
        queries: of B vectors.
        documents: of C vectors of the same width.

    Returns:
        (B, C) float32; the integers are summed exactly up to a width of 1,040.
    """
    # 127 * 127 * 1,040 is below 2^24: float32 holds every partial sum, and its product is a fast one
    sums = queries.codes.astype(np.float32) @ documents.codes.astype(np.float32).T  # (B, C)
    scaled: npt.NDArray[np.float32] = sums * queries.scales[:, None] * documents.scales
    return scaled


def _refuse_unusable(vectors: npt.NDArray[np.floating]) -> None:
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        raise InputError("vectors must be floating (B, D)", field="vectors", value=(vectors.shape, str(vectors.dtype)))
    if len(bad := np.flatnonzero(~np.isfinite(vectors).all(axis=1))):
        raise InputError(
            "a vector holds NaN or infinity",
            field="vectors",
            value=f"row {bad[0]} of {len(vectors)}",
            remedy="leave it out, or encode its text again",
        )
