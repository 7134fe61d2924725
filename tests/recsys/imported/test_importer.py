"""An imported model answers as it does by itself; what does not fit is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.example_generator import Example, make_example
from recsys.backends.prompted import Vocabulary, load_causal
from recsys.bundle import Registry, load_decoder, publish_run
from recsys.bundle.loading import load_model
from recsys.datasets.prepared import PreparedData
from recsys.decoding.building import build_decoder
from recsys.decoding.eligibility import Eligibility
from recsys.decoding.trie import SidTrie
from recsys.errors import ConfigError, CorruptionError, DataError, InputError, WindfireError
from recsys.imported.importer import import_model
from recsys.imported.template import FAMILIES
from recsys.models import ItemFeatures, PromptedRecommender
from recsys.storage import read_json

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HISTORIES = [np.array([3, 7, 9]), np.array([], np.int64), np.array([58]), np.arange(30)]
CLOSE = 1e-6  # the library's norms compute in float32


def loaded(run: Path, data: PreparedData) -> PromptedRecommender:
    features = ItemFeatures(data.codes, data.text, data.collaborative, data.train_counts)
    model = load_model(run / "model", features, data.codebook_sizes)
    assert isinstance(model, PromptedRecommender)
    return model


def by_itself(example: Example, family: str, data: PreparedData, history: np.ndarray, limit: int) -> np.ndarray:
    """(I,) log-probabilities from the library's own model and the prompt's text, every item written out."""
    model = load_causal(example.model, "float32").double()
    vocabulary = Vocabulary(example.model)
    named = json.loads(example.sids.read_text())
    sids = [named[item] for item in data.items["item_id"].to_pylist()]
    prompt = FAMILIES[family].written(vocabulary, [sids[item] for item in history[-limit:]])
    tokens = torch.tensor([[vocabulary.token(token) for token in sid] for sid in sids])  # (I, L)
    with torch.inference_mode():
        rows = torch.cat([torch.tensor(prompt).expand(len(sids), -1), tokens], dim=1)
        logits = model(input_ids=rows).logits[:, len(prompt) - 1 : -1]  # (I, L, V)
    scores = np.zeros(len(sids))
    for item, sid in enumerate(sids):
        for level in range(len(sid)):
            allowed = sorted({vocabulary.token(other[level]) for other in sids if other[:level] == sid[:level]})  # type: ignore[type-var]
            own = logits[item, level, allowed].log_softmax(dim=0)
            scores[item] += float(own[allowed.index(vocabulary.token(sid[level]))])
    return scores


@pytest.mark.parametrize("family", ["minionerec", "openonerec"])
def test_beam_equals_the_enumeration_by_the_model_itself(family: str, tmp_path: Path) -> None:
    example = make_example(tmp_path, family=family, steps=2)
    run = tmp_path / "run"
    report = import_model(family, example.model, sids=example.sids, work=example.work, out=run)
    assert report.difference < 1e-4
    data = PreparedData.load(run / "work")
    model = loaded(run, data).double()
    shown = np.random.default_rng(1).random(60) < 0.7
    answer = build_decoder(model, SidTrie.build(data.codes, data.codebook_sizes), name="beam").decode(
        HISTORIES, k=60, beam=64, eligibility=Eligibility(shown, HISTORIES)
    )
    for history, ranked in zip(HISTORIES, answer.ranked, strict=True):
        wanted = by_itself(example, family, data, history, report.template.max_history)
        assert sorted(ranked.items) == np.setdiff1d(np.flatnonzero(shown), history).tolist()
        np.testing.assert_allclose(ranked.scores, wanted[ranked.items], atol=CLOSE)
        assert (np.diff(ranked.scores) <= 0).all()


def test_a_row_does_not_depend_on_its_batch(foreign_run: Path) -> None:
    data = PreparedData.load(foreign_run / "work")
    model = loaded(foreign_run, data).double()
    decoder = build_decoder(model, SidTrie.build(data.codes, data.codebook_sizes))
    assert decoder.name == "beam"
    together = decoder.decode(HISTORIES, k=20, beam=20, eligibility=Eligibility())
    alone = [decoder.decode([history], k=20, beam=20, eligibility=Eligibility()) for history in HISTORIES]
    for one, other in zip(together.ranked, alone, strict=True):
        np.testing.assert_array_equal(one.items, other.ranked[0].items)
        np.testing.assert_allclose(one.scores, other.ranked[0].scores, atol=CLOSE)
    assert together.spent.tokens == sum(other.spent.tokens for other in alone)


def test_the_run_says_what_it_is(foreign: Example, foreign_run: Path) -> None:
    manifest, external = read_json(foreign_run / "manifest.json"), read_json(foreign_run / "model" / "external.json")
    assert manifest["settings"]["imported"]["licence"] == external["licence"] == "apache-2.0"
    assert Path(external["path"]) == foreign.model.resolve()
    assert set(external["files"]) == {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    assert manifest["settings"]["imported"]["sids"]["shared"] == 2
    weights = sum(path.stat().st_size for path in (foreign_run / "model").iterdir())
    assert weights < external["files"]["model.safetensors"]["bytes"] / 10


def test_a_bundle_answers_as_long_as_the_model_is_as_it_was(
    foreign: Example, foreign_run: Path, tmp_path: Path
) -> None:
    example = Example(tmp_path / "model", foreign.sids, foreign.work)
    shutil.copytree(foreign.model, example.model)
    import_model("minionerec", example.model, sids=example.sids, work=example.work, out=tmp_path / "run")
    registry = Registry(tmp_path / "registry")
    publish_run(registry, run=tmp_path / "run", work=tmp_path / "run" / "work", created=NOW)
    answer = load_decoder(registry.open_current()).decode(HISTORIES, k=5, beam=20, eligibility=Eligibility())
    assert [len(ranked.items) for ranked in answer.ranked] == [5] * 4
    weights = example.model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CorruptionError, match=r"model\.safetensors differs"):
        registry.open_current(markers=tmp_path / "markers")
    weights.unlink()
    with pytest.raises(CorruptionError, match=r"model\.safetensors is missing"):
        registry.open_current(verify=False)


def test_half_precision_answers_nearly_the_same(foreign: Example, foreign_run: Path, tmp_path: Path) -> None:
    report = import_model(
        "minionerec", foreign.model, sids=foreign.sids, work=foreign.work, out=tmp_path / "run", precision="bfloat16"
    )
    assert 0 < report.difference < 0.05
    data = PreparedData.load(foreign_run / "work")
    trie, scores = SidTrie.build(data.codes, data.codebook_sizes), []
    for run in (foreign_run, tmp_path / "run"):
        decoder = build_decoder(loaded(run, data), trie, name="beam")
        ranked = decoder.decode(HISTORIES[:1], k=60, beam=64, eligibility=Eligibility()).ranked[0]
        scores.append(ranked.scores[np.argsort(ranked.items)])
    assert scores[1].dtype == np.float32
    np.testing.assert_allclose(scores[1], scores[0], atol=0.1)


def test_items_of_one_side_only_are_counted(foreign: Example, tmp_path: Path) -> None:
    named = json.loads(foreign.sids.read_text())
    del named["item-0003"], named["item-0004"]
    sids = tmp_path / "some.index.json"
    sids.write_text(json.dumps(named | {"elsewhere": ["<a_0>", "<b_0>", "<c_0>"]}))
    report = import_model("minionerec", foreign.model, sids=sids, work=foreign.work, out=tmp_path / "run")
    assert (report.kept.items, report.kept.dropped, report.sids) == (58, 2, 59)
    assert PreparedData.load(tmp_path / "run" / "work").items.num_rows == 58


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def with_json(name: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (shutil.rmtree, InputError, "no such folder"),
        (without("config.json"), InputError, r"no config\.json"),
        (without("model.safetensors"), InputError, "pickled weights are not read"),
        (without("tokenizer.json"), DataError, "tokenizer"),
        (with_json("config.json", model_type="unheard_of"), DataError, "no decoder that transformers knows"),
        (with_json("config.json", sliding_window=8, use_sliding_window=True, max_window_layers=0,
                   layer_types=["sliding_attention"] * 2), DataError, "whole prompt"),
        (with_json("config.json", max_position_embeddings=90), ConfigError, "the model reads 90"),
    ],
    ids=["folder", "config", "weights", "tokenizer", "type", "sliding", "short"],
)  # fmt: skip
def test_a_folder_that_does_not_fit_is_named(
    change: Callable[[Path], None], error: type[WindfireError], message: str, foreign: Example, tmp_path: Path
) -> None:
    shutil.copytree(foreign.model, tmp_path / "model")
    change(tmp_path / "model")
    with pytest.raises(error, match=message):
        import_model("minionerec", tmp_path / "model", sids=foreign.sids, work=foreign.work, out=tmp_path / "run")
    assert not (tmp_path / "run" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("family", "template", "precision", "message"),
    [
        ("nothing", "{}", "float32", "no such family"),
        ("minionerec", "{}", "float8", "no such precision"),
        ("huggingface", "{}", "float32", "text before or behind"),
        ("minionerec", "behind: ' chrono'\nsuffix: 'logical order'", "float32", "than its pieces"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    family: str, template: str, precision: str, message: str, foreign: Example, tmp_path: Path
) -> None:
    (tmp_path / "t.yaml").write_text(template)
    with pytest.raises(ConfigError, match=message):
        import_model(
            family, foreign.model, sids=foreign.sids, work=foreign.work, out=tmp_path / "run",
            template=tmp_path / "t.yaml", precision=precision,
        )  # fmt: skip
