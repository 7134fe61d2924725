"""A decoder of the transformers library reads positions, masks and caches as our own does."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
import torch

from recsys.backends import choose_backbone
from recsys.backends.huggingface import HuggingFaceBackbone
from recsys.errors import ConfigError
from recsys.models import ItemFeatures, Recommender, RecommenderConfig, TokenRecommender, build_model
from recsys.models.token import training_mask

ITEMS, SIZES, WIDTH = 40, (5, 4, 6), 16
KINDS: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "shared keys": {"num_key_value_heads": 1, "head_dim": 12},
    "eager": {"attn_implementation": "eager"},
    "llama": {"model_type": "llama"},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "learned positions": {"model_type": "gpt2"},
}
HISTORIES = torch.tensor([[3, 7, 9, 1], [5, -1, -1, -1], [-1, -1, -1, -1]])
LENGTHS = torch.tensor([4, 1, 0])
# The library's norms and rotations compute in float32, whatever the model's precision.
CLOSE: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}
every_kind = pytest.mark.parametrize("keys", KINDS.values(), ids=KINDS)


def config(keys: dict[str, Any], **changes: Any) -> RecommenderConfig:
    return RecommenderConfig.from_dict(
        {"codebook_sizes": SIZES, "num_items": ITEMS, "text_dim": 3, "collaborative_dim": 2, "d_model": WIDTH,
         "layers": 2, "heads": 2, "max_history": 6, "backbone": "huggingface", "backbone_config": keys, **changes}
    )  # fmt: skip


def strong(module: torch.nn.Module) -> None:
    """Weights so large that everything a token sees shows in its state."""
    torch.manual_seed(3)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    module.double().eval()


def backbone(keys: dict[str, Any]) -> HuggingFaceBackbone:
    made = HuggingFaceBackbone(config(keys))
    strong(made)
    return made


def recommender(shape: str, keys: dict[str, Any]) -> Recommender:
    rng = np.random.default_rng(3)
    codes = np.stack([rng.integers(size, size=ITEMS) for size in SIZES], axis=1).astype(np.int32)
    text = rng.standard_normal((ITEMS, 3)).astype(np.float32)
    features = ItemFeatures(codes, text, text[:, :2], rng.integers(0, 2, ITEMS))
    model = build_model(config(keys, shape=shape), features, choose_backbone)
    strong(model)
    return model


def tokens(count: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(batch, count, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(count).expand(batch, -1)


@every_kind
def test_a_cache_gives_the_same_states(keys: dict[str, Any]) -> None:
    made = backbone(keys)
    x, positions = tokens(6)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    with torch.inference_mode():
        whole, all_at_once = made(x, positions=positions)
        masked, _ = made(x, positions=positions, mask=causal)
        _, prompt = made(x[:, :4], positions=positions[:, :4])
        kept = [key.clone() for key in prompt.keys]
        rest, grown = made(x[:, 4:], positions=positions[:, 4:], mask=causal[:, :, 4:], cache=prompt)
        last = made.tail(x, ends=torch.tensor([5, 2]), count=1)[:, 0]
    torch.testing.assert_close(masked, whole, **CLOSE)
    torch.testing.assert_close(rest, whole[:, 4:], **CLOSE)
    torch.testing.assert_close(last, torch.stack([whole[0, 5], whole[1, 2]]), rtol=0, atol=0)
    for one, other in zip(grown.keys + grown.values, all_at_once.keys + all_at_once.values, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    for before, after in zip(kept, prompt.keys, strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=0)


@every_kind
def test_a_token_that_the_mask_hides_changes_nothing(keys: dict[str, Any]) -> None:
    made = backbone(keys)
    mask = training_mask(2, 3, branches=True)  # start, 2 x 3 events, 2 x 3 placeholders, 2 x 2 drawn codes
    x, _ = tokens(len(mask), batch=1)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6, 1, 2, 4, 5]])
    with torch.inference_mode():
        before, _ = made(x, positions=positions, mask=mask[None, None])
        for token in range(len(mask)):
            changed = x.clone()
            changed[:, token] = torch.linspace(-1, 1, WIDTH, dtype=torch.float64)
            after, _ = made(changed, positions=positions, mask=mask[None, None])
            torch.testing.assert_close(after[:, ~mask[:, token]], before[:, ~mask[:, token]], rtol=0, atol=0)
            moved = (after - before).abs().amax(dim=(0, 2)) > 1e-4
            assert moved.tolist() == mask[:, token].tolist()


@pytest.mark.parametrize("shape", ["compact", "token", "flat"])
def test_padding_and_batch_mates_change_nothing(shape: str) -> None:
    model = recommender(shape, {})
    with torch.inference_mode():
        together = model.encode(HISTORIES, LENGTHS)
        for row, length in enumerate(LENGTHS.tolist()):
            alone = model.encode(HISTORIES[row : row + 1, :length], LENGTHS[row : row + 1])
            torch.testing.assert_close(together[row], alone[0], **CLOSE)
        model.freeze()
        torch.testing.assert_close(model.encode(HISTORIES, LENGTHS), together, **CLOSE)


def test_training_states_equal_serving_states_in_the_token_shape() -> None:
    model = recommender("token", {"num_key_value_heads": 1})
    assert isinstance(model, TokenRecommender)
    items = torch.tensor([[3, 7, 9, 1]])
    with torch.inference_mode():
        states = model.states(items, None)
        for position in range(4):
            history, length = items[:, :position], torch.tensor([position])
            torch.testing.assert_close(states.head[:, position], model.encode(history, length), **CLOSE)
            prompt = model.encode_prompt(history, length)
            torch.testing.assert_close(states.backbone[:, position, 0], prompt.last, **CLOSE)


@pytest.mark.parametrize("shape", ["compact", "token", "flat"])
def test_every_weight_of_the_backbone_has_a_gradient(shape: str) -> None:
    model = recommender(shape, {})
    model.encode(HISTORIES, LENGTHS).square().sum().backward()  # type: ignore[no-untyped-call]
    own = {name: value for name, value in model.named_parameters() if ".decoder." in f".{name}"}
    assert len(own) == 2 * 11 + 1  # two blocks and the last norm, no table of words
    assert all(value.grad is not None for value in own.values())


def test_a_seed_gives_the_same_weights() -> None:
    torch.manual_seed(5)
    one = HuggingFaceBackbone(config({})).state_dict()
    torch.manual_seed(5)
    other = HuggingFaceBackbone(config({})).state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_configuration_survives_json() -> None:
    chosen = config({"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}})
    assert RecommenderConfig.from_dict(json.loads(json.dumps(chosen.to_dict()))) == chosen


def test_a_configuration_from_before_backbones_means_our_own() -> None:
    old = config({}).to_dict()
    del old["backbone"], old["backbone_config"]
    assert RecommenderConfig.from_dict(old) == config({}, backbone="own")


@pytest.mark.parametrize(
    ("keys", "changes", "field"),
    [
        ({"model_type": "nosuch"}, {}, "backbone_config.model_type"),
        ({"model_type": ["qwen3"]}, {}, "backbone_config.model_type"),
        ({"model_type": "qwen2_vl"}, {}, "backbone_config.model_type"),
        ({"attn_implementation": "flash_attention_2"}, {}, "backbone_config.attn_implementation"),
        ({"num_key_value_head": 1}, {}, "backbone_config.num_key_value_head"),
        ({"hidden_size": 32}, {}, "backbone_config.hidden_size"),
        ({"num_key_value_heads": 3}, {}, "backbone_config"),
        ({"num_attention_heads": "two"}, {}, "backbone_config"),
        ({"head_dim": 7}, {}, "backbone_config"),
        ({"model_type": "bert"}, {}, "backbone_config"),
        ({"model_type": "t5"}, {}, "backbone_config"),
        ({"model_type": "mistral", "sliding_window": 3}, {}, "backbone_config"),
        ({"model_type": "llama"}, {"backbone": "own"}, "backbone_config"),
        ({}, {"backbone": "another"}, "backbone"),
    ],
)
def test_what_cannot_be_built_names_the_field(keys: dict[str, Any], changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as raised:
        choose_backbone(config(keys, **changes))
    assert raised.value.field == field
    assert raised.value.remedy


def test_without_the_library_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "recsys.backends.huggingface")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match="install transformers") as raised:
        choose_backbone(config({}))
    assert raised.value.field == "backbone"


def test_a_maker_that_does_not_know_the_backbone_refuses() -> None:
    features = ItemFeatures(
        np.zeros((ITEMS, 3), np.int32),
        np.zeros((ITEMS, 3), np.float32),
        np.zeros((ITEMS, 2), np.float32),
        np.ones(ITEMS, np.int64),
    )
    with pytest.raises(ConfigError, match="choose_backbone"):
        build_model(config({}), features)
