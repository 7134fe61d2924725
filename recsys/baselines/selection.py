"""Choosing settings on the validation part; the test part is never read here."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from recsys.baselines.ease import Ease, EaseSettings
from recsys.baselines.item_cf import ItemCF, ItemCFSettings
from recsys.baselines.scorer import validation_ndcg
from recsys.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recsys.datasets.prepared import PreparedData


def choose_ease(
    data: PreparedData, regularisations: Sequence[float], decays: Sequence[float], base: EaseSettings | None = None
) -> tuple[Ease, float]:
    """Fit EASE once per lambda, read it with each decay, keep the best on validation (the first of equals).

    Two dense matrices are held at most: the best so far and the one being fitted.

    Returns:
        the model and its validation NDCG@10.

    Raises:
        ConfigError: the grid is empty.
    """
    _check_grid(regularisations=regularisations, decays=decays)
    best: tuple[Ease, float] | None = None
    for regularisation in regularisations:
        fitted = Ease.fit(data, replace(base or EaseSettings(), regularisation=regularisation))
        for decay in decays:
            model = fitted.with_decay(decay)
            value = validation_ndcg(model, data)
            if best is None or value > best[1]:
                best = model, value
        del fitted, model
    assert best is not None  # noqa: S101 - the grid is not empty
    return best


def choose_item_cf(
    data: PreparedData, shrinks: Sequence[float], decays: Sequence[float], base: ItemCFSettings | None = None
) -> tuple[ItemCF, float]:
    """As `choose_ease`, for the shrinkage and the decay of item-CF."""
    _check_grid(shrinks=shrinks, decays=decays)
    best: tuple[ItemCF, float] | None = None
    for shrink in shrinks:
        for decay in decays:
            model = ItemCF.fit(data, replace(base or ItemCFSettings(), shrink=shrink, decay=decay))
            value = validation_ndcg(model, data)
            if best is None or value > best[1]:
                best = model, value
    assert best is not None  # noqa: S101 - the grid is not empty
    return best


def _check_grid(**axes: Sequence[float]) -> None:
    for name, values in axes.items():
        if not len(values):
            raise ConfigError("an empty grid has no best", field=name, value=values, remedy="name at least one value")
