"""Any interleaving of changes, bundles and restarts against a plain dictionary."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from recsys.bundle import Bundle, load_decoder, load_indexes
from recsys.catalog.changes import Delete, Expire, Stock, Upsert
from recsys.catalog.log import CatalogLog
from serving.catalog_intake import CatalogIntake
from serving.engine import EngineRequest
from serving.item_changes import ItemChange
from serving.stages import BundleRecommender

ids = st.sampled_from([f"item-{n:02d}" for n in range(6)] + [f"new-{n}" for n in range(6)])
workers = st.integers(0, 1)
titles = st.sampled_from(["Crimson lacquer", "Wooden chair", "Title 3"])
times = st.none() | st.integers(1, 6)


class CatalogueMachine(RuleBasedStateMachine):
    """Two workers on one log; the model is what each item's row says."""

    published: tuple[Bundle, ...]

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.log = CatalogLog(self.folder / "log", segment_bytes=2_000)
        self.rows: dict[str, dict[str, Any]] = {}
        self.now = 3
        self.workers: list[BundleRecommender] = []

    @initialize()
    def begin(self) -> None:
        self.rows = {f"item-{n:02d}": {} for n in range(48)}
        self.workers = [self.started(0), self.started(0)]

    def started(self, bundle: int) -> BundleRecommender:
        opened = self.published[bundle]
        worker = BundleRecommender(
            opened, load_decoder(opened), beam=20, retrieval=load_indexes(opened), log=CatalogLog(self.folder / "log")
        )
        worker.items.follow()
        return worker

    @rule(worker=workers, item=ids, title=titles, begins=times, ends=times, stock=st.none() | st.integers(0, 2))
    def put(self, worker: int, item: str, title: str, begins: int | None, ends: int | None, stock: int | None) -> None:
        change = Upsert(item_id=item, time=0, title=title, available_from=begins, available_until=ends, stock=stock)
        (result,) = self.intake(worker).write([ItemChange(change=change)])
        assert not isinstance(result, Exception)
        assert result.outcome == ("replaced" if item in self.rows else "created")
        self.rows[item] = {"begins": begins, "ends": ends, "stock": stock}

    @rule(worker=workers, item=ids)
    def delete(self, worker: int, item: str) -> None:
        (result,) = self.intake(worker).write([ItemChange(change=Delete(item_id=item, time=0))])
        assert not isinstance(result, Exception)
        assert result.outcome == ("deleted" if self.rows.pop(item, None) is not None else "missing")

    @rule(item=ids, until=st.integers(1, 6))
    def expire(self, item: str, until: int) -> None:
        with self.log.writing() as writer:
            writer.append([Expire(item_id=item, time=0, until=until)])
        if item in self.rows:
            self.rows[item]["ends"] = until

    @rule(item=ids, stock=st.integers(0, 1))
    def stock(self, item: str, stock: int) -> None:
        with self.log.writing() as writer:
            writer.append([Stock(item_id=item, time=0, stock=stock)])
        if item in self.rows:
            self.rows[item]["stock"] = stock

    @rule(now=st.integers(1, 6))
    def tick(self, now: int) -> None:
        self.now = now

    @precondition(lambda self: self.log.end)
    @rule(worker=workers, bundle=st.integers(0, 1))
    def restart_or_reload(self, worker: int, bundle: int) -> None:
        self.workers[worker] = self.started(bundle)

    def intake(self, worker: int) -> CatalogIntake:
        return CatalogIntake(CatalogLog(self.folder / "log"), lambda: self.workers[worker].items)

    @invariant()
    def what_may_be_shown_is_what_the_model_says(self) -> None:
        expected = {item for item, row in self.rows.items() if may_be_shown(row, self.now)}
        for worker in self.workers:
            for history in (["item-40"], ["item-40", "new-1"], []):
                (answer,) = worker.recommend([EngineRequest(history, 500, self.now, exclude_seen=False)])
                assert answer.ineligible == 0
                assert {item.item_id for item in answer.items} == expected
                assert answer.catalog_version.endswith(f".{self.log.end}")

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


def may_be_shown(row: dict[str, Any], now: int) -> bool:
    begins, ends = row.get("begins"), row.get("ends")
    return row.get("stock") != 0 and (begins is None or begins <= now) and (ends is None or now < ends)


@pytest.fixture
def machine(encodable_bundle: Bundle, second_bundle: Bundle) -> type[CatalogueMachine]:
    return type("Machine", (CatalogueMachine,), {"published": (encodable_bundle, second_bundle)})


def test_any_interleaving_leaves_what_a_dictionary_says(machine: type[CatalogueMachine]) -> None:
    few = settings(max_examples=8, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=few)
