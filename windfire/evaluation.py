"""Measure a published bundle on the held-out events of the data it was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.figures import Figure
from recsys.errors import DataError, VersionMismatchError
from recsys.evaluation.answers import TOP, VIEWS, answer_by_decoder
from recsys.evaluation.intervals import draw_users, intervals
from recsys.evaluation.lists import GROUPS, coverage, gini, invalid_rate, mean_popularity, popularity_groups
from recsys.evaluation.metrics import GAINS, KS

if TYPE_CHECKING:
    import numpy.typing as npt

    from recsys.bundle import Bundle
    from recsys.datasets.prepared import PreparedData
    from recsys.decoding.decoder import Decoder
    from recsys.evaluation.answers import Answered

K: Final = 10
SHARED: Final = 20
_SEED: Final = 1  # of the bootstrap: the same answers give the same intervals


def evaluate_bundle(
    bundle: Bundle, decoder: Decoder, data: PreparedData, *, part: str, beam: int, other: Decoder | None = None
) -> list[Figure]:
    """Rank the held-out items over the full catalogue, history masked and unmasked.

    Args:
        bundle: opened.
        decoder: of the bundle's model.
        data: the work directory that the bundle was made from.
        part: "test" or "valid".
        beam: width.
        other: another decoder of the bundle's model, to say how much of the lists both have in common.

    Raises:
        VersionMismatchError: the bundle was made from another work directory: it may have been trained on the answers.
        DataError: the split holds nothing out for this part.
    """
    if bundle.manifest.tokenizer_version != data.tokenizer_version:
        raise VersionMismatchError(
            f"the bundle has tokenizer {bundle.manifest.tokenizer_version}",
            field="tokenizer_version",
            value=data.tokenizer_version,
            remedy="give the work directory that the bundle was trained on",
        )
    _require_catalog(bundle, data)
    _, histories, targets = data.sequences.targets(part)
    if not len(targets):
        raise DataError(
            "the split holds out no event for this part",
            field="part",
            value=part,
            remedy="choose --part valid, or run `windfire offline run --split leave_one_out` and train on that",
        )
    figures = []
    for view in VIEWS:
        answered = answer_by_decoder(decoder, histories, targets, beam=beam, view=view)
        mask = histories if view == "masked" else None
        figures += _accuracy(view, answered.ranks, popularity_groups(data.train_counts)[targets])
        figures += _of_lists(view, answered, data.train_counts, mask)
        if other is not None:
            theirs = answer_by_decoder(other, histories, targets, beam=beam, view=view)
            figures.append(
                Figure(f"evaluate.{view}.shared@{SHARED}", shared(answered, theirs), "share", n=len(targets))
            )
    return figures


def shared(one: Answered, other: Answered) -> float:
    """Mean share of the first items of one decoder that are among the first of another, whatever their order."""
    ours, theirs = one.lists[:, :SHARED], other.lists[:, :SHARED]
    found = (ours[:, :, None] == theirs[:, None, :]).any(axis=2) & (ours >= 0)
    listed = (ours >= 0).sum(axis=1)
    return float((found.sum(axis=1) / np.maximum(listed, 1)).mean())


def _require_catalog(bundle: Bundle, data: PreparedData) -> None:
    """An increment keeps the tokenizer and shifts the items' indices: the same number would name another item."""
    rows = bundle.item_ids.lookup(data.items["item_id"].to_pylist())
    if len(rows) != bundle.manifest.items or (rows != np.arange(len(rows))).any():
        raise VersionMismatchError(
            "the bundle was made from another catalogue",
            field="items",
            value=len(rows),
            remedy="publish a bundle of this work directory, or give the one that the bundle was trained on",
        )


def _accuracy(view: str, ranks: npt.NDArray[np.int64], groups: npt.NDArray[np.int8]) -> list[Figure]:
    rng = np.random.default_rng(_SEED)
    gains = {f"{metric}@{k}": GAINS[metric](ranks, k) for metric in GAINS for k in KS}
    hits = gains[f"recall@{K}"]
    gains |= {f"recall_{name}@{K}": np.where(groups == group, hits, np.nan) for group, name in enumerate(GROUPS)}
    spoken = {name: values for name, values in gains.items() if not np.isnan(values).all()}
    found = intervals(np.stack(list(spoken.values()))[:, None], draw_users(len(ranks), rng=rng), rng=rng)
    return [
        Figure(f"evaluate.{view}.{name}", i.value, "share", i.low, i.high, int((~np.isnan(values)).sum()))
        for (name, values), i in zip(spoken.items(), found, strict=True)
    ]


def _of_lists(
    view: str, answered: Answered, counts: npt.NDArray[np.int64], mask: list[npt.NDArray[np.int32]] | None
) -> list[Figure]:
    items, cases, best = len(counts), len(answered.ranks), answered.lists[:, :K]
    values = {
        f"coverage@{K}": (coverage(best, items), "share"),
        f"gini@{K}": (gini(best, items), "gini"),
        f"popularity@{K}": (mean_popularity(best, counts), "interactions"),
        f"invalid@{TOP}": (invalid_rate(answered.lists, items, mask), "share"),
    }
    return [Figure(f"evaluate.{view}.{name}", value, unit, n=cases) for name, (value, unit) in values.items()]
