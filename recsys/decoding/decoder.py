"""What every decoder takes and answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch

from recsys.errors import DataError, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from torch import Tensor

    from recsys.decoding.eligibility import Eligibility
    from recsys.decoding.log_prior import LogPrior


@dataclass(frozen=True, slots=True)
class Ranked:
    """The answer to one request, best first.

    Attributes:
        items: (k',) int32 item indices without repetition, k' <= k.
        scores: (k',) floating, non-increasing: log-probabilities, plus the log-prior where there is one, plus what
            `fused` adds, in the precision of the model.
    """

    items: npt.NDArray[np.int32]
    scores: npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Spent:
    """What one call of `decode` cost.

    Attributes:
        forwards: forwards of the backbone.
        tokens: sequence positions that went through the backbone, padding not counted.
        widened: how often a beam was doubled because it held fewer items than were asked for and eligible.
        wanted: `speculative` only: prefixes of levels 2..L-1 that the backbone chose.
        drafted: `speculative` only: of those, how many the draft held.
    """

    forwards: int
    tokens: int
    widened: int = 0
    wanted: tuple[int, ...] = ()
    drafted: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class DecodeResult:
    """One `Ranked` per history, and the cost of all together."""

    ranked: list[Ranked]
    spent: Spent


class Decoder(Protocol):
    """History in, ranked items out."""

    @property
    def name(self) -> str:
        """The decoder's word in logs, answers and figures."""

    def decode(
        self,
        histories: Sequence[npt.NDArray[np.integer]],
        *,
        k: int,
        beam: int,
        eligibility: Eligibility,
        log_prior: LogPrior | None = None,
    ) -> DecodeResult:
        """Rank items behind each history.

        Args:
            histories: item indices per request, oldest first; may be empty arrays.
            k: items wanted per request, at least 1.
            beam: prefixes kept per level, at least 1; decoders without a beam ignore it.
            eligibility: what may be shown; it masks and never changes a score.
            log_prior: what is added to the items' scores, for all requests; None = nothing.

        Returns:
            Per request at most k items; fewer only where fewer are eligible.

        Raises:
            InputError: k, beam or an item index out of range.
            DataError: the model's states are not finite.
        """


@runtime_checkable
class ExtendsItems(Protocol):
    """A model or decoder whose histories may hold items that were added since the weights were trained."""

    def add_items(self, codes: npt.NDArray[np.integer], text: npt.NDArray[np.float32]) -> bool | None:
        """Know the next items I, I + 1, .. by their semantic IDs (n, L) and text vectors (n, D).

        Returns:
            False where the weights cannot read them.
        """


def extend(model: object, codes: npt.NDArray[np.integer], text: npt.NDArray[np.float32]) -> bool:
    """Add items to a model that can read them; whether it can."""
    return isinstance(model, ExtendsItems) and model.add_items(codes, text) is not False


def check_request(k: int, beam: int) -> None:
    """Raise `InputError` unless both numbers are at least 1."""
    for field, value in (("k", k), ("beam", beam)):
        if value < 1:
            raise InputError(f"{field} must be at least 1", field=field, value=value, remedy=f"pass {field} >= 1")


def check_finite(hidden: Tensor | npt.NDArray[np.floating]) -> None:
    """Raise `DataError` where a model's states hold NaN or infinity; a ranking by such states would mean nothing."""
    # a sum is one pass; only where it is not finite itself (it may overflow) every number is looked at
    if math.isfinite(float(hidden.sum())):
        return
    finite = torch.isfinite(hidden) if isinstance(hidden, torch.Tensor) else np.isfinite(hidden)
    if not finite.all():
        raise DataError(
            "the model's hidden states are not finite",
            field="hidden",
            value=tuple(hidden.shape),
            remedy="check the weights of the bundle; roll back to the previous one",
        )
