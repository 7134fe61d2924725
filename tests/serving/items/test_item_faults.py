"""What faults of the log, of the disk and of other writers leave of the items of a worker."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from recsys.bundle import Bundle, load_decoder
from recsys.catalog.changes import Delete, Encoded, Upsert
from recsys.catalog.log import CatalogLog
from recsys.errors import CorruptionError, UnavailableError
from recsys.event_log.segments import segment_path
from serving.catalog_intake import CatalogIntake
from serving.engine import EngineAnswer, EngineRequest
from serving.item_changes import ItemChange, ItemChanged
from serving.live_items import LiveItems
from serving.stages import BundleRecommender

NEW: dict[str, Any] = {"title": "Crimson nail lacquer", "category_path": ("All", "Nails"), "brand": "Acme"}


def ask(recommender: BundleRecommender) -> EngineAnswer:
    return recommender.recommend([EngineRequest(history=["item-11"], n=500, time=2_000_000_000_000_000)])[0]


def test_an_item_keeps_its_semantic_id_whatever_another_writer_says(live: BundleRecommender) -> None:
    """One that the tokenizer knows, and the bundle perhaps not; the codes are none at all."""
    encoder = live.items.encoder
    assert encoder is not None
    given = encoder.placement.given("item-07")
    encoded = Encoded(tokenizer=encoder.placement.version, codes=(99,), text=b"")
    known = encoder.known(Upsert(item_id="item-07", time=1, title="Crimson", encoded=encoded))
    assert known is not None
    assert known[0] == given


def test_what_could_not_be_written_has_taken_no_semantic_id(
    live: BundleRecommender, catalog_log: CatalogLog, other: BundleRecommender
) -> None:
    """Else a worker on a full disk would place the next item of the log elsewhere than the others."""

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    flushes = [fail, os.fsync]  # opening the log flushes once

    def flush(file: int) -> None:
        flushes.pop()(file)

    full = CatalogLog(catalog_log.directory, flush=flush)
    refused = ItemChange(change=Upsert(item_id="new-0", time=0, **NEW))
    (result,) = CatalogIntake(full, lambda: live.items).write([refused])
    assert isinstance(result, UnavailableError)
    with catalog_log.writing() as writer:
        writer.append([Upsert(item_id="new-1", time=1, **NEW)])
    given = []
    for worker in (live, other):
        ask(worker)
        assert worker.items.encoder is not None
        given.append([worker.items.encoder.placement.given(item_id) for item_id in ("new-0", "new-1")])
    assert given[0] == given[1]
    assert given[0][0] is None


def test_a_fault_costs_no_change_of_another_part(live: BundleRecommender, catalog_log: CatalogLog) -> None:
    group = [ItemChange(change=Delete(item_id=f"item-{n:02d}", time=0)) for n in range(40)]
    broken = ItemChange(change=Upsert(item_id="new-1", time=0, title=7))  # type: ignore[arg-type]
    missing = [ItemChange(change=Delete(item_id="nobody", time=0))] * 24
    results = CatalogIntake(catalog_log, lambda: live.items).write([*group, *missing, broken])
    assert [result.outcome for result in results[:64] if isinstance(result, ItemChanged)] == (
        ["deleted"] * 40 + ["missing"] * 24
    )
    assert isinstance(results[64], TypeError)
    assert catalog_log.end == 40


def test_a_damaged_log_takes_no_change_and_says_so(live: BundleRecommender, catalog_log: CatalogLog) -> None:
    with catalog_log.writing() as writer:
        writer.append([Delete(item_id="item-01", time=1)])
    path = segment_path(catalog_log.directory, 0)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    (result,) = CatalogIntake(catalog_log, lambda: live.items).write(
        [ItemChange(change=Delete(item_id="item-02", time=0))]
    )
    assert isinstance(result, UnavailableError)
    assert str(catalog_log.directory) not in result.message


def test_what_stands_before_a_damaged_record_holds(live: BundleRecommender, catalog_log: CatalogLog) -> None:
    with catalog_log.writing() as writer:
        writer.append([Delete(item_id=f"item-{n:02d}", time=1) for n in range(3)])
    path = segment_path(catalog_log.directory, 0)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    answers = [ask(live) for _ in range(2)]
    assert {"item-00", "item-01", "item-02"} & {item.item_id for item in answers[0].items} == {"item-02"}
    assert [int(answer.catalog_version.rpartition(".")[2]) for answer in answers] == [2, 2]
    with pytest.raises(CorruptionError):
        live.items.follow()


class _OutOfFiles(CatalogLog):
    """Says once where the log ends; then no file can be opened any more."""

    answers = 1

    @property
    def end(self) -> int:
        """See `CatalogLog.end`."""
        self.answers -= 1
        if self.answers < 0:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().end


def test_a_change_that_cannot_be_applied_at_once_is_not_known_to_be_made(
    encodable_bundle: Bundle, catalog_log: CatalogLog
) -> None:
    items = LiveItems(encodable_bundle, load_decoder(encodable_bundle), log=_OutOfFiles(catalog_log.directory))
    (result,) = CatalogIntake(catalog_log, lambda: items).write([ItemChange(change=Delete(item_id="item-02", time=0))])
    assert isinstance(result, UnavailableError)
    assert catalog_log.end == 1
