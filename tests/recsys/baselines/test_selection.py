from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from recsys.baselines.ease import Ease, EaseSettings
from recsys.baselines.item_cf import ItemCF, ItemCFSettings
from recsys.baselines.popularity import Popularity
from recsys.baselines.scorer import validation_ndcg
from recsys.baselines.selection import choose_ease, choose_item_cf
from recsys.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from recsys.datasets.prepared import PreparedData


def test_validation_equals_the_loop(small_log: PreparedData) -> None:
    model = ItemCF.fit(small_log)
    _, histories, targets = small_log.sequences.targets("valid")
    gains = []
    for history, target in zip(histories, targets, strict=True):
        scores = model.score([history])[0]
        others = set(range(13)) - set(history.tolist()) - {int(target)}
        rank = 1 + sum(scores[item] >= scores[target] for item in others)
        gains.append((rank <= 10 and target not in history) / np.log2(rank + 1))
    assert validation_ndcg(model, small_log) == pytest.approx(np.mean(gains))


def test_no_validation_target_gives_zero(prepared: Callable[[list[list[int]], int], PreparedData]) -> None:
    data = prepared([[0, 1]], 2)
    assert validation_ndcg(Popularity.fit(data), data) == 0.0


def test_the_best_on_validation_is_kept(small_log: PreparedData) -> None:
    decays = [1.0, 0.3]
    ease, ease_value = choose_ease(small_log, [5.0, 500.0], decays)
    each = [Ease.fit(small_log, EaseSettings(r, d)) for r in (5.0, 500.0) for d in decays]
    assert ease_value == max(validation_ndcg(model, small_log) for model in each)
    assert validation_ndcg(ease, small_log) == ease_value
    cf, cf_value = choose_item_cf(small_log, [0.0, 20.0], decays)
    others = [ItemCF.fit(small_log, ItemCFSettings(s, d)) for s in (0.0, 20.0) for d in decays]
    assert cf_value == max(validation_ndcg(model, small_log) for model in others)
    assert validation_ndcg(cf, small_log) == cf_value


def test_an_empty_grid_is_refused(small_log: PreparedData) -> None:
    with pytest.raises(ConfigError, match="empty grid"):
        choose_ease(small_log, [], [0.5])
    with pytest.raises(ConfigError, match="empty grid"):
        choose_ease(small_log, [1.0], [])
    with pytest.raises(ConfigError, match="empty grid"):
        choose_item_cf(small_log, [1.0], [])
