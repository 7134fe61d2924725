"""What vLLM is given computes what our own model computes: the exported files are read by transformers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from recsys.backends import choose_backbone
from recsys.backends.vllm_export import export_vllm
from recsys.backends.vllm_format import ExportManifest
from recsys.backends.vllm_identity import Origin, export_id
from recsys.decoding.histories import pad_histories
from recsys.errors import ConfigError
from recsys.models import ItemFeatures, Recommender, RecommenderConfig, TokenRecommender, build_model
from windfire_vllm.export import Export

SIZES, ITEMS = (5, 4, 6), 70
ORIGIN = Origin("model-1", "tokenizer-1", "bundle-1")
CODES_ONLY = {"text_dim": 0, "collaborative_dim": 0, "use_item_id": False}


def recommender(**changes: Any) -> tuple[Recommender, ItemFeatures]:
    rng = np.random.default_rng(3)
    settings = {
        "codebook_sizes": SIZES, "num_items": ITEMS, "text_dim": 3, "collaborative_dim": 2, "shape": "token",
        "d_model": 16, "layers": 2, "heads": 2, "max_history": 6, "backbone": "huggingface",
        "backbone_config": {"num_key_value_heads": 1},
    }  # fmt: skip
    config = RecommenderConfig.from_dict(settings | changes)
    features = ItemFeatures(
        np.stack([rng.integers(size, size=ITEMS) for size in SIZES], axis=1).astype(np.int32),
        rng.standard_normal((ITEMS, config.text_dim)).astype(np.float32),
        rng.standard_normal((ITEMS, config.collaborative_dim)).astype(np.float32),
        rng.integers(0, 3, ITEMS),
    )
    torch.manual_seed(3)
    model = build_model(config, features, choose_backbone)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval(), features


def states_of(path: Path, tokens: list[int]) -> torch.Tensor:
    """(n, H) of the exported decoder, built from its config.json and weights."""
    decoder = AutoModel.from_config(AutoConfig.from_pretrained(path), attn_implementation="eager")  # type: ignore[no-untyped-call]
    weights = load_file(path / "model.safetensors")
    own = {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
    decoder.eval().load_state_dict(own)
    with torch.inference_mode():
        states: torch.Tensor = decoder(input_ids=torch.tensor([tokens])).last_hidden_state[0]
    return states


@pytest.mark.parametrize(
    ("changes", "last_rows"),
    [
        ({}, ITEMS),
        (CODES_ONLY, 2 * SIZES[-1]),
        ({"placeholders": False}, ITEMS),
        ({"text_dim": 0, "transition": "rnn", "fusion": "concat"}, ITEMS),
    ],
    ids=["all parts", "codes only", "no placeholders", "rnn, concat"],
)
@pytest.mark.parametrize("history", [[], [4], [11, 4, 63, 4], list(range(20, 29))])
def test_the_exported_decoder_has_our_states(
    tmp_path: Path, changes: dict[str, Any], last_rows: int, history: list[int]
) -> None:
    model, features = recommender(**changes)
    assert isinstance(model, TokenRecommender)
    manifest = export_vllm(model, features, ORIGIN, tmp_path / "out")
    export = Export.load(tmp_path / "out")
    assert (export.manifest.export_id, export.config) == (manifest.export_id, model.config)
    assert manifest.last_rows == last_rows
    tokens = export.prompt(np.array(history, dtype=np.int32))
    items, lengths = pad_histories([np.array(history, dtype=np.int32)], items=ITEMS, limit=6)
    with torch.inference_mode():
        expected = model.encode(items, lengths)[0]
    found = states_of(tmp_path / "out", tokens)[-export.vocabulary.rows :].expand(len(SIZES) + 1, -1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_head_and_catalogue_are_exported_as_they_are(tmp_path: Path) -> None:
    model, features = recommender()
    export_vllm(model, features, ORIGIN, tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    head = {name.removeprefix("head."): value for name, value in weights.items() if name.startswith("head.")}
    assert isinstance(model, TokenRecommender)
    expected = model.head.state_dict()
    assert head.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in head.items())
    export = Export.load(tmp_path / "out")
    np.testing.assert_array_equal(export.codes, features.codes)
    np.testing.assert_array_equal(export.train_counts, features.train_counts)
    np.testing.assert_array_equal(export.trie().item_node[:, 0] < 5, True)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["WindfireNezhaQwen3"]
    assert config["max_position_embeddings"] == 1 + 7 * 3


def test_an_export_replaces_an_export_and_nothing_else(tmp_path: Path) -> None:
    model, features = recommender()
    export_vllm(model, features, ORIGIN, tmp_path / "out")
    export_vllm(model, features, Origin("model-2", "tokenizer-1"), tmp_path / "out")
    assert ExportManifest.load(tmp_path / "out").model_version == "model-2"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").touch()
    with pytest.raises(ConfigError) as raised:
        export_vllm(model, features, ORIGIN, tmp_path / "other")
    assert raised.value.field == "out"
    assert (tmp_path / "other" / "precious").exists()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"shape": "compact"}, "shape"),
        ({"shape": "flat"}, "shape"),
        ({"backbone": "own", "backbone_config": {}}, "backbone"),
        ({"backbone_config": {"model_type": "llama"}}, "backbone_config.model_type"),
    ],
)
def test_a_model_that_the_plugin_cannot_serve_is_refused(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    model, features = recommender(**changes)
    with pytest.raises(ConfigError) as raised:
        export_vllm(model, features, ORIGIN, tmp_path / "out")
    assert raised.value.field == field
    assert raised.value.remedy
    assert not (tmp_path / "out").exists()


def test_the_identity_follows_all_that_an_answer_depends_on() -> None:
    codes, counts = np.zeros((2, 3), np.int32), np.array([1, 2])
    known = {
        export_id(ORIGIN, codes, counts),
        export_id(Origin("model-2", "tokenizer-1"), codes, counts),
        export_id(Origin("model-1", "tokenizer-2"), codes, counts),
        export_id(ORIGIN, codes + 1, counts),
        export_id(ORIGIN, codes, counts[::-1]),
    }
    assert len(known) == 5
    assert export_id(Origin("model-1", "tokenizer-1"), codes.astype(np.int64), counts) in known
