"""The checker of `windfire bench serving` against brute force, its writer of changes, and slopes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.serving_parts.bundles import publish_synthetic
from benchmarks.serving_parts.changer import Changer
from benchmarks.serving_parts.replay import Judged, Replay, Standing
from benchmarks.serving_parts.soak import slope
from benchmarks.serving_settings import ServingSettings
from recsys.catalog.changes import Change, Delete, Expire, Stock, Upsert
from recsys.catalog.index import ItemIndex
from serving.stages import BundleRecommender

if TYPE_CHECKING:
    from pathlib import Path

ITEMS = ["a", "b", "c"]
times = st.integers(0, 20)
changes = st.lists(
    st.one_of(
        st.builds(Expire, item_id=st.sampled_from(ITEMS), time=times, until=times),
        st.builds(Stock, item_id=st.sampled_from(ITEMS), time=times, stock=st.integers(0, 1)),
        st.builds(Delete, item_id=st.sampled_from(ITEMS), time=times),
        st.builds(
            Upsert, item_id=st.sampled_from(ITEMS), time=times, stock=st.none() | st.integers(0, 1),
            available_from=st.none() | times, available_until=st.none() | times,
        ),
    ),
    max_size=8,
)  # fmt: skip


def may_be_shown(item: str, log: list[Change], at: int) -> bool:
    """By definition, change by change; `a` and `b` are of the snapshot."""
    known, stock, begins, ends = item in ("a", "b"), None, None, None
    for change in (change for change in log if change.item_id == item):
        if isinstance(change, Upsert):
            known, stock, begins, ends = True, change.stock, change.available_from, change.available_until
        elif isinstance(change, Delete):
            known = False
        elif isinstance(change, Stock):
            stock = change.stock
        else:
            ends = change.until
    return known and stock != 0 and (begins is None or begins <= at) and (ends is None or at < ends)


@given(changes, st.integers(0, 8), times, times)
def test_the_replay_agrees_with_the_definition(log: list[Change], sequence: int, one: int, other: int) -> None:
    # a change of what is no item yet is refused by the service, so that it stands in no log
    known = [change for n, change in enumerate(log) if change.item_id != "c" or upserted(log[: n + 1])]
    replay = Replay(ItemIndex.build(["a", "b"]))
    replay.follow(enumerate(known))
    first, last = min(one, other), max(one, other)
    expected = [
        item for item in ITEMS if not any(may_be_shown(item, known[:sequence], at) for at in range(first, last + 1))
    ]
    assert replay.wrong(Judged(ITEMS, sequence, 0, first, last)) == expected


def upserted(log: list[Change]) -> bool:
    return any(isinstance(change, Upsert) and change.item_id == "c" for change in log)


@pytest.mark.parametrize(
    ("sequence", "known", "wrong"),
    [(0, 0, []), (0, 1, ["a"]), (1, 0, ["a"]), (1, 1, ["a"]), (1, 2, ["a"]), (2, 1, []), (2, 2, []), (0, 2, [])],
)
def test_what_was_acknowledged_before_the_request_counts_like_what_the_answer_knows(
    sequence: int, known: int, wrong: list[str]
) -> None:
    replay = Replay(ItemIndex.build(["a", "b"]))
    replay.follow(enumerate([Delete(item_id="a", time=1), Upsert(item_id="a", time=2)]))
    assert replay.wrong(Judged(["a", "b"], sequence, known, 5, 5)) == wrong


def test_an_item_that_ends_while_it_is_asked_for_may_be_shown() -> None:
    assert not Standing(ends=10).hidden(9, 12)
    assert Standing(ends=10).hidden(10, 12)
    assert not Standing(begins=10).hidden(8, 10)
    assert Standing(begins=10).hidden(8, 9)
    assert Standing(begins=10, ends=9).hidden(8, 12)  # it ends before it begins
    assert not Standing(begins=10, ends=11).hidden(8, 12)


@pytest.fixture(scope="module")
def bundle_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = ServingSettings.load(quick=True).bundle.model_copy(
        update={"items": 100, "codebook": 8, "text": 4, "d_model": 16, "layers": 1}
    )
    root = tmp_path_factory.mktemp("changed") / "registry"
    publish_synthetic(root, shape, 1)
    return root


def test_what_the_changer_writes_is_understood_by_the_service(bundle_root: Path, tmp_path: Path) -> None:
    from recsys.bundle import Registry
    from serving.engine import EngineRequest

    bundle = Registry(bundle_root).open_current()
    recommender = BundleRecommender(bundle, None, beam=10, log=None)
    with Changer(tmp_path / "log", bundle, 2_000, 1) as changer:
        recommender = BundleRecommender(bundle, None, beam=10, log=changer.log)
        while changer.written < 600:
            time.sleep(0.01)
    now = time.time_ns() // 1_000
    (answer,) = recommender.recommend([EngineRequest(history=[], n=100, time=now, deadline=time.monotonic() + 60)])
    replay = Replay(bundle.item_ids)
    replay.follow(changer.log.read(0, changer.end))
    shown = [item.item_id for item in answer.items]
    assert answer.catalog_version.endswith(f".{changer.end}")
    assert replay.wrong(Judged(shown, changer.end, changer.end, now, now)) == []
    every = [*bundle.item_ids.ids(np.arange(100)), *(f"new-{n:08d}" for n in range(10))]
    possible = len(every) - len(replay.wrong(Judged(every, changer.end, 0, now, now)))
    assert 0 < possible < len(every)
    assert len(shown) == min(possible, 100)


def test_a_slope_is_per_hour_and_inside_its_interval() -> None:
    times = np.linspace(0.0, 1_740.0, 30)
    rng = np.random.default_rng(1)
    own, low, high = slope(times, 5.0 + times / 3_600 * 12 + rng.normal(size=30) * 0.1, rng)
    assert own == pytest.approx(12, abs=0.5)
    assert low < own < high
    assert np.isnan(slope(times[:2], times[:2], rng)[0])
