"""The head learns what the frozen backbone says, and says so truly."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recsys.bundle import Bundle, Registry, load_decoder, publish_run
from recsys.bundle.loading import load_model
from recsys.datasets.prepared import PreparedData
from recsys.decoding.building import build_decoder
from recsys.decoding.eligibility import Eligibility
from recsys.decoding.histories import pad_histories
from recsys.decoding.trie import SidTrie
from recsys.errors import ConfigError, DataError, VersionMismatchError
from recsys.models import ItemFeatures, PromptedRecommender
from recsys.storage import read_json
from training.draft_head.agreement import AgainstBeam
from training.draft_head.objective import Children, draw_lesson, head_loss
from training.draft_head.settings import HeadSettings
from training.draft_head.trainer import HeadFitter, fit_head, pairs
from training.recommender.metrics import MetricsLog

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = HeadSettings(steps=6, batch=4, samples=2, evaluate_every=3, evaluate_users=10, checkpoint_every=2)
HISTORIES = [np.array([3, 7, 9]), np.array([58]), np.array([], np.int64)]


@pytest.fixture(scope="module")
def data(foreign_run: Path) -> PreparedData:
    return PreparedData.load(foreign_run / "work")


@pytest.fixture(scope="module")
def trie(data: PreparedData) -> SidTrie:
    return SidTrie.build(data.codes, data.codebook_sizes)


@pytest.fixture
def model(foreign_run: Path, data: PreparedData) -> PromptedRecommender:
    """With a head of random weights, in float64."""
    torch.manual_seed(5)
    features = ItemFeatures(data.codes, data.text, data.collaborative, data.train_counts)
    found = load_model(foreign_run / "model", features, data.codebook_sizes)
    assert isinstance(found, PromptedRecommender)
    return found.double()


def randomised(model: PromptedRecommender) -> PromptedRecommender:
    for parameter in model.drafting.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.drafted = True
    return model


def padded(model: PromptedRecommender) -> tuple[torch.Tensor, torch.Tensor]:
    return pad_histories(HISTORIES, items=model.config.num_items, limit=model.config.max_history)


def test_a_new_head_says_of_the_first_code_what_the_backbone_says(model: PromptedRecommender) -> None:
    with torch.inference_mode():
        hidden = model.encode(*padded(model))
        ours = model.head.logits(0, hidden, model.head.start(hidden))
        theirs = model.token_logits(0, model.encode_prompt(*padded(model)).last)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_states_behind_a_prompt_are_those_of_one_forward(model: PromptedRecommender) -> None:
    randomised(model)
    with torch.no_grad():
        behind = model.draft_states(model.encode_prompt(*padded(model)))
        states, prompt = model.encode_with_prompt(*padded(model))
    torch.testing.assert_close(behind, states, rtol=0, atol=1e-6)
    torch.testing.assert_close(prompt.last, states[:, 0], rtol=0, atol=0)


def test_the_loss_is_the_divergence_over_whole_semantic_ids(model: PromptedRecommender, trie: SidTrie) -> None:
    randomised(model)
    children, one = Children(trie), slice(0, 1)
    leaves = [leaf[0] for leaf in np.split(trie.bucket_items, trie.bucket_start[1:-1])]  # an item of each
    everything: dict[str, Any] = {"k": len(data_items(model)), "beam": 64, "eligibility": Eligibility()}
    theirs, ours = (
        scores_by_item(build_decoder(model, trie, name=name).decode(HISTORIES[one], **everything).ranked[0])
        for name in ("beam", "nezha")
    )
    wanted = sum(np.exp(theirs[item]) * (theirs[item] - ours[item]) for item in leaves)
    items, lengths = padded(model)
    with torch.no_grad():
        prompt = model.encode_prompt(items[one], lengths[one])
        lesson = draw_lesson(
            model, children, prompt, torch.tensor([4]), samples=800, generator=torch.Generator().manual_seed(1)
        )
        hidden = model.draft_states(prompt)
        found = float(head_loss(model, children, hidden, lesson, data_weight=0.0))
        likelihood = float(head_loss(model, children, hidden, lesson, data_weight=1.0))
    assert found == pytest.approx(wanted, rel=0.1)
    assert likelihood == pytest.approx(-ours[4], abs=1e-5)


def data_items(model: PromptedRecommender) -> range:
    return range(model.config.num_items)


def scores_by_item(ranked: Any) -> dict[int, float]:
    return dict(zip(ranked.items.tolist(), ranked.scores.tolist(), strict=True))


def test_speculative_equals_beam_and_nothing_ineligible_is_shown(model: PromptedRecommender, trie: SidTrie) -> None:
    randomised(model)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        shown = rng.random(60) < rng.random()
        histories = [rng.integers(60, size=size) for size in rng.integers(0, 20, size=3)]
        question: dict[str, Any] = {
            "k": int(rng.integers(1, 60)),
            "beam": int(rng.integers(1, 20)),
            "eligibility": Eligibility(shown, histories),
        }
        answers = {
            name: build_decoder(model, trie, name=name).decode(histories, **question).ranked
            for name in ("beam", "nezha", "speculative")
        }
        for row, history in enumerate(histories):
            allowed = set(np.flatnonzero(shown)) - set(history.tolist())
            for ranked in answers.values():
                assert set(ranked[row].items.tolist()) <= allowed
                assert len(ranked[row].items) == min(question["k"], len(allowed))
            np.testing.assert_array_equal(answers["speculative"][row].items, answers["beam"][row].items)
            np.testing.assert_allclose(answers["speculative"][row].scores, answers["beam"][row].scores, atol=1e-6)


def test_fitting_brings_the_head_to_the_beam(foreign_run: Path, data: PreparedData, tmp_path: Path) -> None:
    settings = HeadSettings(steps=40, batch=8, samples=4, evaluate_every=40, evaluate_users=30)
    fitter = HeadFitter(foreign_run, data, settings, tmp_path / "head", seed=1)
    against = AgainstBeam(fitter.model, fitter.trie, data, users=30, beam=50)
    before, backbone = against.measure(), fitter.model.get_submodule("backbone").state_dict()
    frozen = {name: value.clone() for name, value in backbone.items()}
    manifest = fitter.run()
    after = against.measure()
    assert after.top10 > max(before.top10, 0.9)
    assert manifest["metrics"] == after.metrics()
    assert manifest["settings"]["imported"]["licence"] == "apache-2.0"
    assert all(torch.equal(value, frozen[name]) for name, value in backbone.items())
    registry = Registry(tmp_path / "registry")
    publish_run(registry, run=tmp_path / "head", work=foreign_run / "work", created=NOW)
    bundle = registry.open_current()
    assert_all_decoders_answer(bundle)
    further = fit_head(bundle.path, data, SETTINGS, tmp_path / "further", seed=1)  # from the fitted head
    assert further["metrics"]["valid.top10"] > 0.9


def assert_all_decoders_answer(bundle: Bundle) -> None:
    assert load_decoder(bundle).name == "nezha"
    for name in ("nezha", "beam", "speculative"):
        answer = load_decoder(bundle, name).decode(HISTORIES, k=5, beam=20, eligibility=Eligibility(None, HISTORIES))
        assert [len(ranked.items) for ranked in answer.ranked] == [5, 5, 5]


class _Stopped(Exception):  # noqa: N818 - not an error
    pass


def test_an_interrupted_fitting_ends_bit_for_bit_the_same(
    foreign_run: Path, data: PreparedData, tmp_path: Path
) -> None:
    whole = fit_head(foreign_run, data, SETTINGS, tmp_path / "whole", seed=1)
    fitter = HeadFitter(foreign_run, data, SETTINGS, tmp_path / "cut", seed=1)
    (tmp_path / "cut").mkdir()
    against = AgainstBeam(fitter.model, fitter.trie, data, users=10, beam=50)
    ticks = iter([None] * 4)

    def tick(_: str) -> None:
        if next(ticks, "over") == "over":
            raise _Stopped

    with closing(MetricsLog(tmp_path / "cut", step=0)) as log, pytest.raises(_Stopped):
        fitter._loop(against, log, tick)
    assert fitter.progress.step == 5
    resumed = fit_head(foreign_run, data, SETTINGS, tmp_path / "cut", seed=1)
    assert resumed["metrics"] == whole["metrics"]
    one, other = (load_file(tmp_path / name / "model" / "weights.safetensors") for name in ("whole", "cut"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    stamp = (tmp_path / "cut" / "manifest.json").stat().st_mtime_ns
    assert fit_head(foreign_run, data, SETTINGS, tmp_path / "cut", seed=1) == read_json(tmp_path / "cut/manifest.json")
    assert (tmp_path / "cut" / "manifest.json").stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match="checkpoint belongs to other data"):
        fit_head(foreign_run, data, SETTINGS, tmp_path / "cut", seed=2)


def test_what_cannot_be_fitted_is_named(
    foreign_run: Path, data: PreparedData, tiny_run: Path, tiny_work: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no imported model here"):
        fit_head(tiny_run, data, SETTINGS, tmp_path, seed=1)
    with pytest.raises(VersionMismatchError, match="writes semantic IDs imported-"):
        fit_head(foreign_run, PreparedData.load(tiny_work), SETTINGS, tmp_path, seed=1)
    with pytest.raises(ConfigError, match="fitting: Input should be greater"):
        HeadSettings.parse({"steps": 0})
    with pytest.raises(ConfigError, match="fitting: Extra inputs"):
        HeadSettings.parse({"stesp": 1})


def test_every_training_event_with_a_history_is_a_pair(data: PreparedData) -> None:
    found = pairs(data.sequences)
    wanted = [
        (int(start), int(start) + place)
        for start, count in zip(data.sequences.offsets[:-1], data.sequences.train_end, strict=True)
        for place in range(1, int(count))
    ]
    assert [tuple(row) for row in found.tolist()] == wanted
