"""Vectors and labels from files, checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from recsys.datasets.prepared import load_sequences
from recsys.errors import ConfigError, DataError, InputError
from recsys.evaluation.judged import Judgements
from training.smec.batches import Labelled, together
from training.smec.controls import Truncation
from training.smec.data import VectorData, load_data, read_vectors, successors, unit
from training.smec.measuring import measure
from training.smec.settings import SmecSettings

if TYPE_CHECKING:
    from collections.abc import Callable


def test_text_vectors_of_a_work_directory_are_read_in_the_order_of_items(tiny_work: Path) -> None:
    assert read_vectors(tiny_work).shape == (48, 6)
    assert read_vectors(tiny_work).dtype == np.float32


def test_labels_from_the_log_are_next_items_of_training_alone(tiny_work: Path) -> None:
    data = load_data(tiny_work, from_log=True)
    sequences = load_sequences(tiny_work)
    expected = {
        (int(a), int(b))
        for user in range(sequences.users)
        for a, b in zip(sequences.training(user)[:-1], sequences.training(user)[1:], strict=True)
    }
    assert {tuple(pair) for pair in successors(sequences).tolist()} == {pair for pair in expected if pair[0] != pair[1]}
    assert data.judgements is not None
    items = sorted({pair[0] for pair in expected})
    np.testing.assert_array_equal(data.queries, data.documents[items])
    assert data.judgements[0].tolist() == sorted(b for a, b in expected if a == items[0])
    assert data.own is not None
    assert data.own.tolist() == items


def test_files_of_vectors_and_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.eye(4, dtype=np.float16))
    np.save(tmp_path / "q.npy", np.eye(4, dtype=np.float32)[:2])
    (tmp_path / "l.tsv").write_text("0\t3\n1\t2\n0\t1\n")
    data = load_data(tmp_path / "d.npy", queries=tmp_path / "q.npy", labels=tmp_path / "l.tsv")
    assert data.judgements is not None
    assert [data.judgements[query].tolist() for query in (0, 1)] == [[1, 3], [2]]
    assert load_data(tmp_path / "d.npy").judgements is None


@pytest.mark.parametrize("text", ["0\n", "0\tx\n", "2\t0\n", "0\t-1\n", "-1\t0\n", "0\t1\t1\n"])
def test_labels_of_another_form_are_refused_with_their_line(tmp_path: Path, text: str) -> None:
    np.save(tmp_path / "v.npy", np.eye(2, dtype=np.float32))
    (tmp_path / "l.tsv").write_text("1\t0\n" + text)
    with pytest.raises(DataError, match="line 2"):
        load_data(tmp_path / "v.npy", queries=tmp_path / "v.npy", labels=tmp_path / "l.tsv")


REFUSED: list[tuple[Callable[[Path], object], type[Exception], str]] = [
    (lambda p: load_data(p / "none.npy"), DataError, "no readable vectors"),
    (lambda p: load_data(p / "text.npy"), DataError, "no readable vectors"),
    (lambda p: load_data(p / "ints.npy"), DataError, "floating"),
    (lambda p: load_data(p / "nan.npy"), InputError, "row 1"),
    (lambda p: load_data(p / "ok.npy", queries=p / "ok.npy"), ConfigError, "queries go with labels"),
    (lambda p: load_data(p / "ok.npy", from_log=True), ConfigError, "only a work directory"),
    (load_data, DataError, "offline job"),
]


@pytest.mark.parametrize(("call", "error", "text"), REFUSED)
def test_bad_input_is_refused(
    tmp_path: Path, call: Callable[[Path], object], error: type[Exception], text: str
) -> None:
    (tmp_path / "text.npy").write_text("no array")
    np.save(tmp_path / "ints.npy", np.ones((2, 2), np.int64))
    np.save(tmp_path / "nan.npy", np.array([[1, 1], [np.nan, 1]], np.float32))
    np.save(tmp_path / "ok.npy", np.eye(2, dtype=np.float32))
    with pytest.raises(error, match=text):
        call(tmp_path)


def test_labels_beyond_the_documents_and_other_widths_are_refused() -> None:
    eye = np.eye(3, dtype=np.float32)
    with pytest.raises(InputError, match="beyond the 3"):
        VectorData(eye, eye[:1], Judgements.of([[3]]))
    with pytest.raises(InputError, match=r"\(B, 3\)"):
        VectorData(eye, eye[:1, :2], Judgements.of([[0]]))
    with pytest.raises(InputError, match="every query"):
        VectorData(eye, eye[:1], None)
    with pytest.raises(DataError, match="fewer than two"):
        _ = VectorData.unlabelled(np.zeros((3, 2), np.float32)).pool


def test_a_query_is_no_answer_to_itself(tiny_work: Path) -> None:
    """Its own document is neither wrong nor found, whatever it scores."""
    data = load_data(tiny_work, from_log=True)
    assert data.own is not None
    assert data.judgements is not None
    hard = data.hard_negatives(20)
    assert not (hard == data.own[:, None]).any()
    chosen = SmecSettings(halvings=1, batch=12, negatives=2, hard=4, steps=20)
    queries, documents, labels = Labelled(data, chosen).draw(np.random.default_rng(1))
    own = data.own[queries - len(data.documents)]
    here = documents == own[:, None]
    assert here.any()
    assert ((labels.numpy() == -1) == here).all()
    part, rest = data.split(0.5, seed=1)
    for each in (part, rest):
        assert each.own is not None
        np.testing.assert_array_equal(each.documents[each.own], each.queries)
    gains = measure(Truncation(6, 1), data, np.arange(5), 6)
    scores = unit(data.queries) @ unit(data.documents).T
    scores[np.arange(len(scores)), data.own] = -2
    first = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    expected = [np.isin(data.judgements[q], row).mean() for q, row in enumerate(first)]
    np.testing.assert_allclose(gains["recall@10"], expected)


def test_a_query_that_is_a_document_is_no_neighbour_of_itself() -> None:
    documents = unit(np.random.default_rng(4).normal(size=(6, 4)).astype(np.float32))
    queries = np.concatenate([documents[1:3], -documents[:1]])
    data = VectorData(documents, queries, Judgements.of([[0], [0], [1]]), np.array([1, 2, -1]))
    assert data.pool.tolist() == [0, 1, 2, 3, 4, 5, 8]  # 6 and 7 are the documents 1 and 2
    np.testing.assert_array_equal(data.without_labels().documents, np.concatenate([documents, queries[2:]]))


def test_own_documents_that_cannot_be_are_refused() -> None:
    eye = np.eye(3, dtype=np.float32)
    with pytest.raises(InputError, match="no answer to it"):
        VectorData(eye, eye[:1], Judgements.of([[2, 0]]), np.array([0]))
    for own in (np.array([3]), np.array([0, 1])):
        with pytest.raises(InputError, match="one document or none"):
            VectorData(eye, eye[:1], Judgements.of([[2]]), own)


def test_held_out_queries_are_apart_from_those_trained_on(labelled: VectorData) -> None:
    train, held = labelled.split(0.25, seed=3)
    assert (len(train.queries), len(held.queries)) == (45, 15)
    together_again = np.concatenate([train.queries, held.queries])
    assert {row.tobytes() for row in together_again} == {row.tobytes() for row in labelled.queries}
    again, _ = labelled.split(0.25, seed=3)
    np.testing.assert_array_equal(train.queries, again.queries)


def test_a_batch_names_every_row_once_and_labels_what_is_right(labelled: VectorData) -> None:
    assert labelled.judgements is not None
    draws = Labelled(labelled, SmecSettings(batch=8, negatives=2, hard=5))
    rng = np.random.default_rng(2)
    queries, documents, labels = drawn = draws.draw(rng)
    for row, query in enumerate(queries - len(labelled.documents)):
        right = labelled.judgements[query]
        assert set(documents[labels[row].numpy() > 0]) == set(right)
    anchors = np.array([3, 95, 4])
    neighbours = np.array([[4, 5], [3, 4], [95, 3]])
    batch = together(drawn, anchors, neighbours)
    rows = batch.rows.numpy()
    assert len(set(rows.tolist())) == len(rows)
    np.testing.assert_array_equal(rows[batch.queries], queries)
    np.testing.assert_array_equal(rows[batch.documents], documents)
    np.testing.assert_array_equal(rows[batch.anchors], anchors)
    np.testing.assert_array_equal(rows[batch.neighbours], neighbours)


def test_hard_negatives_are_never_right(labelled: VectorData) -> None:
    assert labelled.judgements is not None
    found = labelled.hard_negatives(20)
    assert found.shape == (60, 20)
    assert all(not set(row) & set(labelled.judgements[query]) for query, row in enumerate(found.tolist()))
