"""Which model an answer of vLLM belongs to: both sides derive the same name from the same content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from recsys.storage import sha256_parts

if TYPE_CHECKING:
    import numpy.typing as npt

_LENGTH: Final = 16


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model comes from.

    Attributes:
        model_version: names weights and configuration.
        tokenizer_version: names codebooks and assignment.
        bundle_version: None for a run that was not published.
    """

    model_version: str
    tokenizer_version: str
    bundle_version: str | None = None


def export_id(origin: Origin, codes: npt.NDArray[np.integer], train_counts: npt.NDArray[np.integer]) -> str:
    """Names all that an answer's item indices and their order depend on.

    Args:
        origin: of the model; not the bundle's own name: two bundles of the same content have the same exported model.
        codes: (I, L) semantic IDs.
        train_counts: (I,) training interactions: the order inside a bucket.
    """
    arrays = (np.ascontiguousarray(codes, np.int32), np.ascontiguousarray(train_counts, np.int64))
    parts: list[str | bytes] = [origin.model_version, origin.tokenizer_version, *(array.tobytes() for array in arrays)]
    return sha256_parts(parts)[:_LENGTH]
