"""Whether the world can be learnt from: its truth beats neighbours, neighbours beat popularity, order tells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from recsys.datasets.marketplace import Marketplace, Scene, WorldSize
from recsys.datasets.marketplace.log import block_events

_K = 10
_RECENCY = 0.9


@dataclass(frozen=True)
class _Log:
    """Positive events in canonical order; `last` are the rows of the users' last events, the test targets."""

    market: Marketplace
    user: npt.NDArray[np.int64]
    item: npt.NDArray[np.int32]
    time: npt.NDArray[np.int64]
    scene: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]

    def history(self, row: int) -> npt.NDArray[np.int32]:
        return self.item[np.searchsorted(self.user, self.user[row]) : row]


@pytest.fixture(scope="module")
def log() -> _Log:
    size = WorldSize("quality", items=1_500, users=1_500, days=50, kinds=3, modifiers=2, block=500)
    market = Marketplace(size, 2)
    events = pa.concat_tables([block_events(market, block, 0, size.days)[0] for block in range(size.blocks)])
    events = events.filter(pc.not_equal(events["action"], "impression"))
    user = market.users_of(events["user_id"].to_pylist())
    ends = np.flatnonzero(np.append(user[1:] != user[:-1], [True]))
    return _Log(
        market=market,
        user=user,
        item=market.items_of(events["item_id"].to_pylist()),
        time=events["time"].to_numpy(),
        scene=np.array([Scene[name.upper()] for name in events["scene"].to_pylist()]),
        last=ends[np.bincount(user)[user[ends]] >= 5],
    )


def _hits(log: _Log, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Recall@10 of every target over all items but those of the history; ties count against."""
    for case, row in enumerate(log.last.tolist()):
        scores[case, log.history(row)] = -np.inf
    target = scores[np.arange(len(log.last)), log.item[log.last]]
    better = (scores >= target[:, None]).sum(axis=1) - 1
    hits = (better < _K) & np.isfinite(target)
    found: npt.NDArray[np.float64] = hits.astype(np.float64)
    return found


def _standard_errors(difference: npt.NDArray[np.float64]) -> float:
    """The mean of paired differences, in its standard errors."""
    return float(difference.mean() / difference.std() * np.sqrt(len(difference)))


def _truth(log: _Log) -> npt.NDArray[np.float64]:
    """True utilities at the time of the target; what is not on sale then cannot be chosen."""
    everything = np.arange(len(log.market.catalog))
    times = log.time[log.last]
    on_sale = np.stack([log.market.available(everything, time) for time in times.tolist()])
    utilities = log.market.utility(log.user[log.last], everything, log.scene[log.last], times)
    return np.where(on_sale, utilities, -np.inf)


def _popularity(log: _Log) -> npt.NDArray[np.float64]:
    training = np.ones(len(log.item), dtype=np.bool_)
    training[log.last] = False
    counts = np.bincount(log.item[training], minlength=len(log.market.catalog)).astype(np.float64)
    return np.tile(counts, (len(log.last), 1))


def _item_cf(log: _Log) -> npt.NDArray[np.float64]:
    """Cosine of co-occurrence, summed over the history with weights that fall with age."""
    seen = np.zeros((int(log.user.max()) + 1, len(log.market.catalog)))
    weighted = np.zeros((len(log.last), len(log.market.catalog)))
    for case, row in enumerate(log.last.tolist()):
        history = log.history(row)
        seen[log.user[row], history] = 1.0
        np.maximum.at(weighted[case], history, _RECENCY ** np.arange(len(history))[::-1])
    norm = np.sqrt(np.maximum(seen.sum(axis=0), 1.0))
    cosine = (seen.T @ seen) / norm / norm[:, None]
    np.fill_diagonal(cosine, 0.0)
    scores: npt.NDArray[np.float64] = weighted @ cosine
    return scores


def test_truth_beats_neighbours_and_neighbours_beat_popularity(log: _Log) -> None:
    oracle, neighbours, popularity = (_hits(log, s) for s in (_truth(log), _item_cf(log), _popularity(log)))
    assert len(log.last) > 1_000
    assert oracle.mean() > 3 * popularity.mean()
    assert _standard_errors(oracle - neighbours) > 5
    assert _standard_errors(neighbours - popularity) > 3


def test_the_next_leaf_follows_from_the_last(log: _Log) -> None:
    """Transitions counted on half of the users tell where the others go when they leave a leaf."""
    leaf = log.market.catalog.leaf[log.item]
    moved = np.flatnonzero((log.user[1:] == log.user[:-1]) & (leaf[1:] != leaf[:-1]))
    fitting, held_out = moved[log.user[moved] % 2 == 0], moved[log.user[moved] % 2 == 1]
    counts = np.zeros((log.market.catalog.tree.leaves,) * 2)
    np.add.at(counts, (leaf[fitting], leaf[fitting + 1]), 1)
    by_last = np.argsort(-counts, axis=1)[leaf[held_out], :3]
    overall = np.argsort(-counts.sum(axis=0))[:3]
    hit = (by_last == leaf[held_out + 1][:, None]).any(axis=1).mean()
    assert hit > 0.4
    assert hit > 3 * np.isin(leaf[held_out + 1], overall).mean()


def test_popularity_is_uneven_but_not_all_there_is(log: _Log) -> None:
    counts = np.sort(np.bincount(log.item, minlength=log.market.size.items))[::-1]
    assert 0.25 < counts[: len(counts) // 10].sum() / counts.sum() < 0.75


def test_the_session_goes_on_where_it_was_more_often_than_the_next_visit(log: _Log) -> None:
    leaf = log.market.catalog.leaf[log.item]
    same_user = log.user[1:] == log.user[:-1]
    soon = np.diff(log.time) < 1_800_000_000
    stays = leaf[1:] == leaf[:-1]
    assert stays[same_user & soon].mean() > stays[same_user & ~soon].mean() + 0.1
