"""What is laid beside a trained decoder: its weight is the best on validation, and 0 changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality_beside import DenseScores, WithPrior, correct_popularity
from recsys.baselines.ease import Ease
from recsys.bundle.loading import load_model
from recsys.datasets.prepared import PreparedData
from recsys.decoding.building import build_decoder
from recsys.decoding.decoder import Decoder
from recsys.decoding.eligibility import Eligibility
from recsys.decoding.log_prior import LogPrior
from recsys.decoding.trie import SidTrie
from recsys.evaluation.answers import answer_by_decoder
from recsys.evaluation.metrics import ndcg
from recsys.models import ItemFeatures


@pytest.fixture
def data(tiny_work: Path) -> PreparedData:
    return PreparedData.load(tiny_work)


@pytest.fixture
def parts(tiny_run: Path, data: PreparedData) -> tuple[Decoder, SidTrie]:
    features = ItemFeatures(data.codes, data.text, data.collaborative, data.train_counts)
    trie = SidTrie.build(data.codes, data.codebook_sizes)
    model = load_model(tiny_run / "model", features, data.codebook_sizes)
    return build_decoder(model, trie, name="nezha", prior=data.train_counts), trie


def test_the_correction_is_the_best_on_validation(parts: tuple[Decoder, SidTrie], data: PreparedData) -> None:
    decoder, trie = parts
    chosen, told = correct_popularity(decoder, trie, data, [-2.0, 0.5, 30.0], beam=48)
    values = told["valid.ndcg@10"]
    assert list(values) == ["-2", "0", "0.5", "30"]
    assert values[f"{told['weight']:g}"] == max(values.values())
    _, histories, targets = data.sequences.targets("valid")
    ranks = answer_by_decoder(chosen, histories, targets, beam=48, view="masked").ranks
    assert ndcg(ranks, 10).mean() == pytest.approx(max(values.values()))
    plain = answer_by_decoder(decoder, histories, targets, beam=48, view="masked").ranks
    assert values["0"] == pytest.approx(ndcg(plain, 10).mean())


def test_a_strong_correction_reverses_popularity(parts: tuple[Decoder, SidTrie], data: PreparedData) -> None:
    decoder, trie = parts
    prior = LogPrior(trie, -1e3 * np.log1p(data.train_counts.astype(np.float64)))
    ranked = WithPrior(decoder, prior).decode([np.array([1, 2])], k=20, beam=48, eligibility=Eligibility()).ranked[0]
    assert (np.diff(data.train_counts[ranked.items]) >= 0).all()


def test_dense_scores_are_the_baselines(data: PreparedData) -> None:
    ease = Ease.fit(data)
    dense = DenseScores(ease, len(data.codes))
    histories, candidates = [np.array([1, 2]), np.array([3])], [np.array([5, 0, 9]), np.array([7])]
    whole = np.log(np.maximum(ease.score(histories), 0) + 0.01)
    for row, (items, own) in enumerate(zip(candidates, dense.scores(histories, candidates), strict=True)):
        np.testing.assert_allclose(own, whole[row, items], rtol=1e-6)
    assert dense.positions(histories) == 0
