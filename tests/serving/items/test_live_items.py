"""New, changed and removed items in the answers of one worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from recsys.bundle import Bundle, load_decoder, load_indexes
from recsys.catalog import CatalogFilter
from recsys.catalog.changes import Delete, Encoded, Expire, Stock, Upsert
from recsys.catalog.log import CatalogLog
from recsys.decoding.added import ColdPrior
from serving.catalog_intake import CatalogIntake
from serving.engine import EngineAnswer, EngineRequest, Seek
from serving.item_changes import ItemChange, ItemChanged
from serving.live_items import LiveItems
from serving.stages import BundleRecommender

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = 2_000_000_000_000_000
ITEMS = {f"item-{n:02d}" for n in range(48)}
NEW: dict[str, Any] = {
    "title": "Crimson nail lacquer",
    "category_path": ("All", "Nails"),
    "brand": "Acme",
    "price_micros": 7_000_000,
}


def ask(
    recommender: BundleRecommender, history: tuple[str, ...] = ("item-11",), n: int = 500, **rest: Any
) -> EngineAnswer:
    return recommender.recommend([EngineRequest(history=list(history), n=n, time=NOW, **rest)])[0]


def ids(answer: EngineAnswer) -> list[str]:
    assert answer.ineligible == 0, "the last look has found a fault of the stages"
    return [item.item_id for item in answer.items]


def change(recommender: BundleRecommender, log: CatalogLog, *changes: ItemChange) -> list[ItemChanged]:
    results = CatalogIntake(log, lambda: recommender.items).write(list(changes))
    assert not [result for result in results if isinstance(result, Exception)]
    return [result for result in results if isinstance(result, ItemChanged)]


def put(recommender: BundleRecommender, log: CatalogLog, item_id: str, **fields: Any) -> ItemChanged:
    (result,) = change(recommender, log, ItemChange(change=Upsert(item_id=item_id, time=0, **(NEW | fields))))
    return result


def delete(recommender: BundleRecommender, log: CatalogLog, item_id: str) -> ItemChanged:
    (result,) = change(recommender, log, ItemChange(change=Delete(item_id=item_id, time=0)))
    return result


def test_a_new_item_is_in_every_source_by_the_next_request(live: BundleRecommender, catalog_log: CatalogLog) -> None:
    assert "new-1" not in ids(ask(live))
    result = put(live, catalog_log, "new-1")
    assert (result.outcome, result.catalog_version) == ("created", f"{live.versions.bundle}.1")
    answer = ask(live)
    assert {"new-1": "nezha"}.items() <= {item.item_id: item.source for item in answer.items}.items()
    assert next(item.title for item in answer.items if item.item_id == "new-1") == "Crimson nail lacquer"
    assert answer.catalog_version == f"{live.versions.bundle}.1"
    assert "new-1" in ids(ask(live, ())), "behind the popular ones"
    assert ids(ask(live, n=1, seek=Seek(text="crimson lacquer"))) == ["new-1"]
    assert len(ids(ask(live, n=5, seek=Seek(item_id="new-1")))) == 5
    assert "new-1" in ids(ask(live, seek=Seek(item_id="item-11", vectors="text")))


@pytest.mark.parametrize(
    ("rest", "shown"),
    [
        ({"conditions": CatalogFilter(brands=("Acme",))}, True),
        ({"conditions": CatalogFilter(brands=("Brand 1",))}, False),
        ({"conditions": CatalogFilter(categories=(("All", "Nails"),))}, True),
        ({"conditions": CatalogFilter(categories=(("All",),))}, True),
        ({"conditions": CatalogFilter(categories=(("All", "Nails", "Red"),))}, False),
        ({"conditions": CatalogFilter(price_min_micros=7_000_000, price_max_micros=7_000_000)}, True),
        ({"conditions": CatalogFilter(price_min_micros=7_000_001)}, False),
        ({"conditions": CatalogFilter(price_max_micros=6_999_999)}, False),
        ({"allow": ["new-1", "item-03"]}, True),
        ({"allow": ["item-03"]}, False),
        ({"deny": ["new-1"]}, False),
        ({"history": ["new-1"]}, False),
        ({"history": ["new-1"], "exclude_seen": False}, True),
    ],
)
def test_filters_see_a_new_item(
    live: BundleRecommender, catalog_log: CatalogLog, rest: dict[str, Any], shown: bool
) -> None:
    put(live, catalog_log, "new-1")
    asked: dict[str, Any] = {"history": ["item-11"], "n": 500, "time": NOW} | rest
    request = EngineRequest(**asked)
    assert ("new-1" in ids(live.recommend([request])[0])) == shown


def test_scores_of_all_other_items_stay(live: BundleRecommender, catalog_log: CatalogLog) -> None:
    before = {item.item_id: (item.score, item.source) for item in ask(live, n=47).items}
    for n in range(20):
        put(live, catalog_log, f"new-{n}", title=f"Crimson {n} lacquer {n % 3}")
    for item in ("item-03", "item-20"):
        delete(live, catalog_log, item)
    after = {item.item_id: (item.score, item.source) for item in ask(live).items}
    assert set(after) == (set(before) - {"item-03", "item-20"}) | {f"new-{n}" for n in range(20)}
    assert {name: after[name] for name in before if name in after} == {
        name: known for name, known in before.items() if name in after
    }


def test_a_new_item_in_a_history_is_read(live: BundleRecommender, catalog_log: CatalogLog) -> None:
    put(live, catalog_log, "new-1")
    put(live, catalog_log, "new-2", title="Wooden chair", category_path=("All", "Home"), brand="Oak")
    answers = [ask(live, history) for history in (("new-1",), ("new-2",), ("item-11", "new-1"), ("item-11",))]
    assert {answer.decoder for answer in answers} == {"nezha"}
    assert [answer.counts.history_unknown for answer in answers] == [0] * 4
    scores = [{item.item_id: item.score for item in answer.items if item.source == "nezha"} for answer in answers]
    assert scores[0]["item-40"] != scores[1]["item-40"], "what is read is the item's content"
    assert scores[2]["item-40"] != scores[3]["item-40"]
    batch = live.recommend([EngineRequest(history=["item-11"], n=500, time=NOW), EngineRequest(["new-1"], 500, NOW)])
    assert [{item.item_id: item.score for item in answer.items if item.source == "nezha"} for answer in batch] == [
        scores[3],
        scores[0],
    ]


def test_a_known_item_gets_attributes_and_keeps_its_place(live: BundleRecommender, catalog_log: CatalogLog) -> None:
    score = next(item.score for item in ask(live).items if item.item_id == "item-20")
    assert put(live, catalog_log, "item-20").outcome == "replaced"
    answer = ask(live)
    assert [(item.score, item.title) for item in answer.items if item.item_id == "item-20"] == [
        (score, "Crimson nail lacquer")
    ]
    assert ids(ask(live, conditions=CatalogFilter(brands=("Acme",)))) == ["item-20"]
    assert "item-20" not in ids(ask(live, conditions=CatalogFilter(brands=("Brand 0",))))
    assert ids(ask(live, n=1, seek=Seek(text="crimson lacquer"))) == ["item-20"]


@pytest.mark.parametrize("gone", ["item-05", "new-1"])
@pytest.mark.parametrize(
    "record",
    [
        lambda name: Delete(item_id=name, time=1),
        lambda name: Expire(item_id=name, time=1, until=NOW),
        lambda name: Stock(item_id=name, time=1, stock=0),
        lambda name: Upsert(item_id=name, time=1, title="Crimson", available_from=NOW + 1),
        lambda name: Upsert(item_id=name, time=1, title="Crimson", stock=0),
    ],
)
def test_what_is_gone_is_in_no_source(live: BundleRecommender, catalog_log: CatalogLog, gone: str, record: Any) -> None:
    put(live, catalog_log, "new-1")
    with catalog_log.writing() as writer:
        writer.append([record(gone)])
    sources: list[dict[str, Any]] = [
        {},
        {"history": ()},
        {"history": (), "scene": "home"},
        {"allow": [gone]},
        {"conditions": CatalogFilter(categories=(("All",),))},
        {"seek": Seek(text="crimson nail lacquer title 5")},
        {"seek": Seek(item_id="item-06", vectors="text")},
        {"seek": Seek(item_id="item-06")},
    ]
    for rest in sources:
        assert gone not in ids(ask(live, **rest))
    assert live.items.sequence == 2


def test_time_alone_shows_and_hides(live: BundleRecommender, catalog_log: CatalogLog) -> None:
    put(live, catalog_log, "new-1", available_from=NOW + 10, available_until=NOW + 20)
    shown = [
        "new-1" in ids(live.recommend([EngineRequest(["item-11"], 500, NOW + later)])[0])
        for later in (9, 10, 19, 20, 10, 0)
    ]
    assert shown == [False, True, True, False, True, False]


def test_the_declared_prior_holds_new_items_back_and_no_others(
    encodable_bundle: Bundle, catalog_log: CatalogLog, live: BundleRecommender
) -> None:
    strict = BundleRecommender(
        encodable_bundle, load_decoder(encodable_bundle), beam=20, log=catalog_log, cold=ColdPrior(5.0)
    )
    put(live, catalog_log, "new-1")
    codes = next(change for _, change in catalog_log.read(0, 1))
    assert isinstance(codes, Upsert)
    assert codes.encoded is not None
    known = {tuple(code[:depth]) for code in encodable_bundle.codes.tolist() for depth in range(4)}
    missing = sum(codes.encoded.codes[:depth] not in known for depth in range(1, 4))
    assert missing >= 1
    scores = [{item.item_id: item.score for item in ask(each).items} for each in (live, strict)]
    assert scores[0].pop("new-1") - scores[1].pop("new-1") == pytest.approx(5.0 * missing, abs=1e-4)
    assert scores[0] == scores[1]


def test_what_comes_back_is_the_same_item(live: BundleRecommender, catalog_log: CatalogLog) -> None:
    put(live, catalog_log, "new-1")
    before = {item.item_id: item.score for item in ask(live).items}
    delete(live, catalog_log, "new-1")
    assert ask(live, seek=Seek(item_id="new-1")).refusal == "unknown_item"
    assert put(live, catalog_log, "new-1", title="Another title").outcome == "created"
    assert {item.item_id: item.score for item in ask(live).items} == before
    assert live.items.rows.added == 1


def test_decisions(live: BundleRecommender, catalog_log: CatalogLog) -> None:
    """Also inside one group, where nothing is written yet when the next is decided."""
    new = Upsert(item_id="new-1", time=0, title="Crimson")
    only_new, gone = ItemChange(change=new, only_new=True), ItemChange(change=Delete(item_id="new-1", time=0))
    blank = ItemChange(change=Upsert(item_id="new-2", time=0, title=" ", text="?!"))
    group = [gone, only_new, only_new, gone, gone, only_new, ItemChange(change=new), blank]
    results = change(live, catalog_log, *group)
    expected = ["missing", "created", "exists", "deleted", "missing", "created", "replaced", "no_words"]
    assert [result.outcome for result in results] == expected
    sequences = [int(result.catalog_version.rpartition(".")[2]) for result in results]
    assert sequences == [0, 1, 1, 2, 2, 3, 4, 4], "the catalogue that holds the change"
    assert catalog_log.end == 4
    assert "new-1" in ids(ask(live))
    assert change(live, catalog_log, only_new)[0].outcome == "exists"


def test_semantic_ids_are_never_given_twice(
    live: BundleRecommender, catalog_log: CatalogLog, other: BundleRecommender
) -> None:
    """Items of the same words, each deleted before the next comes; and another worker knows what was given."""
    for n in range(6):
        put(live, catalog_log, f"new-{n}")
        delete(live, catalog_log, f"new-{n}")
    changes = [change for _, change in catalog_log.read(0, catalog_log.end)]
    codes = [change.encoded.codes for change in changes if isinstance(change, Upsert) and change.encoded is not None]
    assert len(codes) == len(set(codes)) == 6
    put(other, catalog_log, "new-9")
    last = next(change for _, change in catalog_log.read(12, 13))
    assert isinstance(last, Upsert)
    assert last.encoded is not None
    assert last.encoded.codes not in codes


def test_every_worker_sees_what_one_was_told(
    live: BundleRecommender, catalog_log: CatalogLog, other: BundleRecommender
) -> None:
    """To the last bit, though the one read the changes one by one and the other all at once."""
    put(live, catalog_log, "new-1")
    put(live, catalog_log, "new-2")
    delete(live, catalog_log, "item-05")
    for history in (("item-11",), ("new-1", "item-11", "new-2")):
        answers = [[(item.item_id, item.score) for item in ask(each, history).items] for each in (live, other)]
        assert answers[0] == answers[1]
    put(other, catalog_log, "new-3")
    assert "new-3" in ids(ask(live))
    assert {"new-1", "new-2"} <= set(ids(ask(other)))
    assert "item-05" not in ids(ask(other))


def test_a_bundle_without_a_tokenizer_takes_changes_of_its_own_items_only(
    served_bundle: Bundle, catalog_log: CatalogLog
) -> None:
    worker = BundleRecommender(served_bundle, load_decoder(served_bundle), beam=10, log=catalog_log)
    refused = put(worker, catalog_log, "new-1")
    assert (refused.outcome, "no tokenizer" in refused.reason) == ("no_encoder", True)
    assert put(worker, catalog_log, "item-20").outcome == "replaced"
    assert delete(worker, catalog_log, "item-21").outcome == "deleted"
    assert not {"item-21", "new-1"} & set(ids(ask(worker)))
    with catalog_log.writing() as writer:
        writer.append([Upsert(item_id="new-2", time=1, title="Crimson")])
    assert "new-2" not in ids(ask(worker))
    assert worker.items.unplaced == {"new-2"}


@pytest.mark.parametrize(
    ("codes", "text", "shown"),
    [
        ((0, 0, 0), b"", True),
        ((0, 0, 0), b"\x00\x00\xc0\x7f" * 256, True),  # not a number
        ((), b"\x00\x00\x80\x3f" * 256, True),
        ((0, 0, 24), b"\x00\x00\x80\x3f" * 256, False),
        ((0, 0), b"\x00\x00\x80\x3f" * 256, False),
        ((0, 0, 0), b"\xff\xff\x7f\x7f" * 256, True),  # as large as a number can be
        ((0, 0, 0), b"\x01\x00\x00\x00" * 256, True),  # as small
        ((0, 0, 0), b"\x00\x00\x00\x00" * 256, True),
    ],
)
def test_what_another_writer_has_encoded_badly_stops_nobody(
    live: BundleRecommender, catalog_log: CatalogLog, codes: tuple[int, ...], text: bytes, shown: bool
) -> None:
    encoded = Encoded(
        tokenizer=live.items.encoder.placement.version if live.items.encoder else "", codes=codes, text=text
    )
    with catalog_log.writing() as writer:
        writer.append([Upsert(item_id="new-1", time=1, title="Crimson", encoded=encoded)])
    put(live, catalog_log, "new-2")
    found = ids(ask(live))
    assert ("new-1" in found, "new-2" in found, live.items.unplaced) == (shown, True, set() if shown else {"new-1"})
    assert "new-2" in ids(ask(live, ("new-1", "item-11")))


def test_a_worker_without_an_encoder_shows_what_others_have_encoded(
    encodable_bundle: Bundle, catalog_log: CatalogLog, live: BundleRecommender
) -> None:
    indexes = load_indexes(encodable_bundle, encoder=False)
    worker = BundleRecommender(
        encodable_bundle, load_decoder(encodable_bundle), beam=20, retrieval=indexes, log=catalog_log
    )
    put(live, catalog_log, "new-1")
    answers = [[(item.item_id, item.score) for item in ask(each, ("new-1",)).items] for each in (live, worker)]
    assert answers[0] == answers[1]
    refused = put(worker, catalog_log, "new-2")
    assert (refused.outcome, "no text encoder" in refused.reason) == ("no_encoder", True)
    assert put(worker, catalog_log, "new-1", title="Other words").outcome == "replaced"
    assert "new-1" in ids(ask(live))


def test_items_that_another_writer_did_not_encode_are_encoded_by_every_worker(
    live: BundleRecommender, catalog_log: CatalogLog, other: BundleRecommender
) -> None:
    with catalog_log.writing() as writer:
        writer.append([Upsert(item_id=f"new-{n}", time=1, title=f"Crimson lacquer {n}") for n in range(5)])
    answers = [[(item.item_id, item.score) for item in ask(worker).items] for worker in (live, other)]
    assert answers[0] == answers[1]
    assert {f"new-{n}" for n in range(5)} <= {name for name, _ in answers[0]}


def test_the_decoder_of_another_process_hides_what_is_gone(encodable_bundle: Bundle, catalog_log: CatalogLog) -> None:
    """A decoder that takes a bitset of the snapshot's items only, as vLLM's, beside new items."""

    class Plain:
        name = "nezha"

        def __init__(self) -> None:
            self._inner = load_decoder(encodable_bundle)
            self.decode = self._inner.decode

    indexes = load_indexes(encodable_bundle)
    worker = BundleRecommender(encodable_bundle, Plain(), beam=20, retrieval=indexes, log=catalog_log)
    with catalog_log.writing() as writer:
        writer.append([Upsert(item_id="new-1", time=1, title="Crimson"), Delete(item_id="item-05", time=2)])
    sources = {item.item_id: item.source for item in ask(worker).items}
    assert "item-05" not in sources
    assert (sources["item-20"], sources["new-1"]) == ("nezha", "popular_memory")
    alone = ask(worker, ("new-1",), exclude_seen=False)
    assert (alone.decoder, alone.counts.history_unknown, "new-1" in ids(alone)) == (None, 0, True)


def test_masks_are_kept_between_changes(live: BundleRecommender, catalog_log: CatalogLog) -> None:
    put(live, catalog_log, "new-1")
    ask(live)
    conditions = CatalogFilter(brands=("Acme",))
    first = live.items.shared(conditions, NOW)
    assert live.items.shared(conditions, NOW + 1).items is first.items
    put(live, catalog_log, "new-2")
    assert first.items is not None
    assert np.flatnonzero(first.items).tolist() == [48]
    later = live.items.shared(conditions, NOW).items
    assert later is not None
    assert np.flatnonzero(later).tolist() == [48, 49]


class _Overtaken(CatalogLog):
    """Between its first answer and what follows, somebody else follows the log to a later end."""

    overtake: Callable[[], None] | None = None

    @property
    def end(self) -> int:
        """See `CatalogLog.end`."""
        seen = super().end
        meanwhile, self.overtake = self.overtake, None
        (meanwhile or (lambda: None))()
        return seen


def test_who_is_overtaken_by_another_thread_loses_nothing(encodable_bundle: Bundle, catalog_log: CatalogLog) -> None:
    log = _Overtaken(catalog_log.directory)
    items = LiveItems(encodable_bundle, load_decoder(encodable_bundle), log=log)
    with catalog_log.writing() as writer:
        writer.append([Expire(item_id="item-03", time=1, until=2)])

    def overtake() -> None:
        with catalog_log.writing() as writer:
            writer.append([Delete(item_id="item-04", time=2)])
        items.follow()

    log.overtake = overtake
    items.follow()
    assert items.sequence == 2
    assert items.deleted(4)
