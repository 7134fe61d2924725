"""Later items: the arithmetic of what is measured, and a whole small measurement."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cold import ColdSettings, Measurement
from benchmarks.cold_data import ColdData, HeldOut
from benchmarks.cold_figures import exposure, exposures, hits, shown, source_figures, unfairness
from benchmarks.cold_later import Cases, cases_of, live_index
from benchmarks.cold_sources import Nearest, merge
from benchmarks.cold_tables import TABLES, TITLES
from benchmarks.figures import Figure, Report
from benchmarks.tables import render
from recsys.datasets.prepared import PreparedData, Sequences
from recsys.evaluation.intervals import draw_users
from recsys.semantic_ids.artefact import Artefact
from recsys.semantic_ids.collisions import settle
from recsys.semantic_ids.settings import SemanticIdSettings, TokenizerSettings
from recsys.semantic_ids.sources import fit_source
from recsys.semantic_ids.tokenizer import fit_tokenizer
from recsys.storage import write_json_atomically
from recsys.text.encoder import HashingEncoder
from recsys.text.item_text import item_text

if TYPE_CHECKING:
    from pathlib import Path

ITEMS, USERS = 60, 90
SIZES = (4, 4, 8)
HELD = HeldOut(np.array([10, 25, 41]), np.array([7, 30, 52]))

lists_of = st.lists(st.lists(st.integers(0, 12), max_size=6, unique=True), min_size=1, max_size=5)


def padded(rows: list[list[int]], width: int = 6) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.array([row + [-1] * (width - len(row)) for row in rows], dtype=np.int32)


@given(rows=lists_of, target=st.integers(0, 12), cut=st.integers(1, 6), trained=st.integers(0, 13))
def test_hits_and_shares_are_counted_as_by_hand(rows: list[list[int]], target: int, cut: int, trained: int) -> None:
    lists, targets = padded(rows), np.full(len(rows), target)
    assert hits(lists, targets, cut).tolist() == [float(target in row[:cut]) for row in rows]
    shares = [sum(item >= trained for item in row[:cut]) / max(len(row[:cut]), 1) for row in rows]
    np.testing.assert_allclose(shown(lists, trained, cut), shares)


def test_exposure_is_what_is_shown_over_what_is_wanted() -> None:
    lists = padded([[0, 1, 9, 8], [9, 1], [0, 1, 2, 3], [4]])
    targets = np.array([9, 1, 2, 3])
    rng = np.random.default_rng(1)
    users = draw_users(4, rng=rng, replicates=500)
    shares = np.stack([shown(lists, 8, 6), shown(lists[::-1], 8, 6)])
    found = exposure(shares, targets >= 8, users, rng=rng)
    assert found.value == pytest.approx((2 / 4 + 1 / 2) / 4 / (1 / 4))
    assert 0 < found.low <= 1.0 < found.high < np.inf, "also where a replicate draws no wanted case"


def test_the_fairest_is_off_by_the_same_factor_either_way() -> None:
    ratios = exposures(padded([[8, 0], [0, 8], [1, 2], [3]]), trained=8, wanted=0.5)
    assert ratios == pytest.approx([0.5, 0.5])
    assert unfairness([0.5, 1.0]) == pytest.approx(unfairness([1.5, 2.0])) == pytest.approx(np.log(2))
    assert unfairness([1.0, 0.0]) == np.inf


def test_a_figure_is_of_its_group_alone() -> None:
    lists = padded([[5], [1], [2], [7]])
    targets, trained = np.array([5, 1, 0, 0]), 5
    groups = {"": targets >= trained, "some.": np.array([False, True, True, False]), "none.": np.zeros(4, dtype=bool)}
    figures = source_figures("cold.x", [lists, lists], targets, groups, trained, replicates=200, seed=1)
    found = {figure.name: figure for figure in figures}
    assert set(found) == {f"cold.x.{name}@{cut}" for name in ("recall", "some.recall", "exposure") for cut in (10, 50)}
    assert (found["cold.x.recall@50"].value, found["cold.x.recall@50"].n) == (1.0, 1)
    assert (found["cold.x.some.recall@50"].value, found["cold.x.some.recall@50"].n) == (0.5, 2)
    assert (found["cold.x.some.recall@50"].low, found["cold.x.some.recall@50"].high) == (0.0, 1.0)
    assert found["cold.x.exposure@10"].value == pytest.approx(2.0)


@given(first=lists_of, second=lists_of, share=st.sampled_from([0.0, 0.3, 1.0]))
def test_two_lists_are_merged_by_what_their_ranks_are_worth(
    first: list[list[int]], second: list[list[int]], share: float
) -> None:
    count = min(len(first), len(second))
    merged = merge(padded(first[:count]), padded(second[:count]), share)
    for mine, theirs, found in zip(first, second, merged.tolist(), strict=False):
        worth = {item: (1 - share) / (61 + place) for place, item in enumerate(mine)}
        for place, item in enumerate(theirs):
            worth[item] = worth.get(item, 0.0) + share / (61 + place)
        order = sorted(worth, key=lambda item: (-worth[item], item))[: len(found)]
        assert found == order + [-1] * (len(found) - len(order))


def test_the_nearest_are_those_of_the_dense_product() -> None:
    rng = np.random.default_rng(3)
    trained, later = (rng.standard_normal((count, 6)).astype(np.float32) for count in (30, 5))
    trained[4] = later[1] = 0
    histories = [np.array([3, 4, 31]), np.array([33, 2]), np.array([4, 31, 31])]
    found = Nearest(trained, later).lists(histories, k=8, decay=0.5)
    sunk = Nearest(trained, later).lists(histories, k=8, decay=0.5, discount=0.4)
    vectors = np.concatenate([trained, later])
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    for row, history in enumerate(histories[:2]):
        query = sum(0.5**age * vectors[item] for age, item in enumerate(history[::-1]))
        scores = unit @ query
        scores[[*history, 4, 31]] = -np.inf  # had, or without a vector
        assert found[row].tolist() == np.argsort(-scores)[:8].tolist()
        scores[30:] -= 0.4 * np.linalg.norm(query)
        assert sunk[row].tolist() == np.argsort(-scores)[:8].tolist()
    assert found[2].tolist() == [-1] * 8, "nothing to look near to"


def walks() -> Sequences:
    """Users who walk a ring of items in steps of 1 or 2."""
    rng = np.random.default_rng(5)
    rows = [
        (rng.integers(ITEMS) + np.cumsum(rng.integers(1, 3, size=rng.integers(6, 12)))) % ITEMS for _ in range(USERS)
    ]
    lengths = np.array([len(row) for row in rows])
    return sequences([f"u{user:03}" for user in range(USERS)], rows, lengths)


def sequences(users: list[str], rows: list[Any], lengths: Any) -> Sequences:
    return Sequences(
        user_ids=np.array(users, dtype=object),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=np.concatenate(rows).astype(np.int32),
        times=np.concatenate([np.arange(length) for length in lengths]),
        train_end=(lengths - 2).astype(np.int32),
        valid_index=(lengths - 2).astype(np.int32),
        test_index=(lengths - 1).astype(np.int32),
    )


def prepared(rows: list[dict[str, Any]], log: Sequences, work: Path, settings: SemanticIdSettings) -> PreparedData:
    """What the offline jobs would make of a log, without Spark."""
    columns = ("title", "category_path", "brand", "text")
    text = HashingEncoder().encode([item_text(*(row[name] for name in columns)) for row in rows])
    places = np.array([int(row["title"].split()[-1]) for row in rows]) * 2 * np.pi / ITEMS
    collaborative = np.stack([np.cos(places), np.sin(places), np.cos(3 * places), np.sin(3 * places)], axis=1)
    collaborative = collaborative.astype(np.float32)
    source, _ = fit_source(settings, text, collaborative)
    vectors = source.embed(text, collaborative)
    tokenizer = fit_tokenizer(vectors, TokenizerSettings(codebook_sizes=SIZES), seed=0)
    codes, sizes = settle("reassign", *tokenizer.encode(vectors), tokenizer)
    ids = np.array([row["item_id"] for row in rows], dtype=object)
    (work / "semantic_ids").mkdir(parents=True)
    description = {"tokenizer_version": "toy", "codebook_sizes": list(sizes), "settings": settings.described()}
    Artefact(description, settings, tokenizer, source, ids, codes).save(work / "semantic_ids")
    encoder = {"hashing": True, "max_tokens": 8, "bfloat16": False, "model": None}
    write_json_atomically(work / "text_embeddings" / "manifest.json", {"settings": encoder})
    trained = np.concatenate([log.training(user) for user in range(log.users)])
    counts = np.bincount(trained, minlength=len(rows))
    return PreparedData(pa.Table.from_pylist(rows), log, text, collaborative, codes, sizes, "toy", counts)


@pytest.fixture
def cold_data(tmp_path: Path) -> ColdData:
    rows = [
        {"item_id": f"i{n:02}", "title": f"thing {n}", "category_path": [f"near {n // 5}", f"at {n // 3}"],
         "brand": f"by {n // 10}", "text": None}
        for n in range(ITEMS)
    ]  # fmt: skip
    settings, log = SemanticIdSettings(fill="predicted"), walks()
    full = prepared(rows, log, tmp_path / "full", settings)
    kept = np.setdiff1d(np.arange(ITEMS), HELD.every)
    index = np.full(ITEMS, -1)
    index[kept] = np.arange(len(kept))
    left = [index[log.items[log.offsets[user] : log.offsets[user + 1]]] for user in range(log.users)]
    left = [row[row >= 0] for row in left]
    named = [(name, row) for name, row in zip(log.user_ids.tolist(), left, strict=True) if len(row) > 2]
    fewer = sequences([name for name, _ in named], [row for _, row in named], np.array([len(row) for _, row in named]))
    work = tmp_path / "left"
    data = prepared([rows[item] for item in kept], fewer, work, settings)
    return ColdData(full, data, HELD, work, {})


def small() -> ColdSettings:
    sizes = {"d_model": 16, "layers": 1, "heads": 2, "max_history": 8}
    steps = {"steps": 30, "batch_tokens": 512, "evaluate_every": 15, "warmup_steps": 2, "learning_rate": 0.01}
    train = {**steps, "bf16": False, "teacher": {"kind": "none"}, "model": sizes}
    changes = {"train": train, "replicates": 50, "remove": 5, "score_cases": 5, "seeds": [1, 2]}
    return ColdSettings.load(quick=True).model_copy(update=changes)


def modified(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_cases_name_what_the_full_data_set_names(cold_data: ColdData) -> None:
    full, data = cold_data.full, cold_data.data
    index = live_index(full, data, HELD.measured)
    cases = cases_of(full, "test", index, trained=len(data.codes))
    ids = [*data.items["item_id"].to_pylist(), *(f"i{item:02}" for item in HELD.measured)]
    users, histories, targets = full.sequences.targets("test")
    never = {f"i{item:02}" for item in HELD.choice}
    expected = [
        ([f"i{item:02}" for item in history if f"i{item:02}" not in never], f"i{target:02}")
        for history, target in zip(histories, targets, strict=True)
        if f"i{target:02}" not in never
    ]
    found = [
        ([ids[item] for item in history], ids[target])
        for history, target in zip(cases.histories, cases.targets, strict=True)
    ]
    assert found == expected
    assert cases.left_out == len(users) - len(found) > 0
    later = {f"i{item:02}" for item in HELD.measured}
    assert cases.new_target.tolist() == [target in later for _, target in expected]
    assert cases.new_history.tolist() == [bool(later & set(history)) for history, _ in expected]
    assert all((history < cases.trained).all() for history in cases.without_new())
    assert len(cases.some(7).targets) == 7


def test_a_whole_measurement_finds_later_items_and_resumes(cold_data: ColdData, tmp_path: Path) -> None:
    lines: list[str] = []
    folder = tmp_path / "cold"
    figures, chosen = Measurement(small(), cold_data, folder, lines.append).run()
    found = {figure.name: figure for figure in figures}
    assert len(chosen) == 2
    assert found["features.cold.items"].value == 3
    assert found["features.cold.no_cold_handling.recall@50"].value == 0
    assert found["features.cold.no_cold_handling.exposure@50"].value == 0
    for source in ("nezha", "retrieval", "both", "content_only"):
        assert found[f"features.cold.{source}.recall@50"].value > 0.5, "50 of 57 items, most of them near"
        assert found[f"features.cold.{source}.exposure@50"].value > 0
    assert found["features.cold.scores.compared"].value == 5 * (54 - 5)
    assert found["features.cold.scores.changed"].value == 0
    made = modified(folder)
    again, _ = Measurement(small(), cold_data, folder, lines.append).run()
    assert [figure.value for figure in again] == [figure.value for figure in figures]
    assert modified(folder) == made, "nothing is done twice"


def test_the_tables_show_every_source(tmp_path: Path) -> None:
    figures = [
        Figure(f"features.cold.{source}.{name}", 0.25, "share", 0.125, 0.5, 100)
        for source in TITLES
        for name in ("recall@50", "history.recall@50", "all.recall@50", "exposure@10", "exposure@50")
    ]
    figures += [Figure(f"features.cold.scores.{name}", 0.0, "", note="done") for name in ("changed", "largest_change")]
    figures.append(Figure("features.cold.scores.compared", 1000.0, "scores", note="done"))
    Report("windfire bench cold", {}, [1], figures, "", {}).save(tmp_path / "cold.json")
    for rest in TABLES:
        assert render(f"cold-{rest}".rstrip("-"), tmp_path).count("\n") == (3 if rest == "scores" else 2 + len(TITLES))
    assert "| .2500 | .1250 to .5000 |" in render("cold", tmp_path)
    assert "| 0.25 | 0.12 to 0.50 |" in render("cold-exposure", tmp_path)


def test_evenly_spread_cases_keep_order() -> None:
    cases = Cases(3, [np.array([n]) for n in range(10)], np.arange(10))
    assert cases.some(4).targets.tolist() == [0, 3, 6, 9]
    assert replace(cases, left_out=2).some(None).left_out == 2
