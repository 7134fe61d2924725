"""The engines compute what torch computes in the backbone's own precision."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from recsys.backends import choose_engine
from recsys.backends.half import HalfEngine
from recsys.backends.onnx import OnnxEngine
from recsys.decoding.building import build_decoder
from recsys.decoding.eligibility import Eligibility
from recsys.decoding.histories import pad_histories
from recsys.decoding.trie import SidTrie
from recsys.errors import ConfigError
from recsys.models import ItemFeatures, Recommender, RecommenderConfig, build_model
from recsys.models.backbone import Backbone
from recsys.models.item_input import ItemInput

if TYPE_CHECKING:
    from collections.abc import Callable

    from recsys.models.backbone import Engine

ITEMS, SIZES, LONGEST = 300, (8, 8, 8), 12
RNG = np.random.default_rng(5)
CODES = np.stack([RNG.integers(size, size=ITEMS) for size in SIZES], axis=1).astype(np.int32)
HISTORIES = [RNG.integers(ITEMS, size=length).astype(np.int32) for length in (0, 1, 2, 7, LONGEST, LONGEST + 9)]
SHAPES = pytest.mark.parametrize("shape", ["compact", "token", "flat"])


def model(shape: str, **changes: Any) -> Recommender:
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((ITEMS, 6)).astype(np.float32)
    features = ItemFeatures(CODES, vectors, vectors[:, :4], rng.integers(0, 2, ITEMS))
    torch.manual_seed(3)
    config = RecommenderConfig.from_dict(
        {"codebook_sizes": SIZES, "num_items": ITEMS, "text_dim": 6, "collaborative_dim": 4, "shape": shape,
         "d_model": 64, "layers": 2, "heads": 4, "max_history": LONGEST, **changes}
    )  # fmt: skip
    built = build_model(config, features)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.15)  # no gain of a norm stays at 1
    return built.eval()


def encoded(engine: str, shape: str, rows: list[int], **changes: Any) -> torch.Tensor:
    made = model(shape, **changes)
    made.freeze(choose_engine(engine, made.config))
    with torch.inference_mode():
        return made.encode(*pad_histories([HISTORIES[row] for row in rows], items=ITEMS, limit=LONGEST))


@SHAPES
@pytest.mark.parametrize("changes", [{}, {"layers": 1}, {"layers": 3, "heads": 1}, {"placeholders": False}])
def test_states_equal_those_of_torch(shape: str, changes: dict[str, Any]) -> None:
    rows = list(range(len(HISTORIES)))
    expected = encoded("torch", shape, rows, **changes)
    torch.testing.assert_close(encoded("onnx", shape, rows, **changes), expected, rtol=1e-4, atol=1e-5)
    for row in rows:
        torch.testing.assert_close(encoded("onnx", shape, [row], **changes)[0], expected[row], rtol=1e-4, atol=1e-5)


def test_batch_mates_change_no_bit_of_a_state() -> None:
    engine = OnnxEngine(Backbone(d_model=32, layers=2, heads=2, ffn_multiple=2.0, dropout=0.0).eval(), positions=9)
    x, ends = torch.randn(3, 9, 32, generator=torch.Generator().manual_seed(1)), torch.tensor([8, 2, 5])
    together = engine.tail(x, ends=ends, count=2)
    for row, end in enumerate(ends.tolist()):
        alone = engine.tail(x[row : row + 1, : end + 1], ends=ends[row : row + 1], count=2)
        assert torch.equal(together[row], alone[0])


@SHAPES
@pytest.mark.parametrize("engine", ["onnx_int8", "torch_bf16"])
def test_states_of_rounded_weights_are_near(shape: str, engine: str) -> None:
    rows = list(range(len(HISTORIES)))
    expected, found = encoded("torch", shape, rows), encoded(engine, shape, rows)
    error = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert 0 < float(error.max()) < 0.03


@SHAPES
def test_decoders_answer_the_same_by_either_engine(shape: str) -> None:
    trie = SidTrie.build(CODES, SIZES)
    answers = []
    for engine in ("torch", "onnx"):
        made = model(shape)
        made.freeze(choose_engine(engine, made.config))
        answers.append(build_decoder(made, trie).decode(HISTORIES, k=20, beam=50, eligibility=Eligibility()).ranked)
    for one, other in zip(*answers, strict=True):
        np.testing.assert_array_equal(other.items, one.items)
        np.testing.assert_allclose(other.scores, one.scores, rtol=0, atol=1e-4)


def test_training_again_ends_the_engine() -> None:
    backbone = Backbone(d_model=32, layers=1, heads=2, ffn_multiple=2.0, dropout=0.0).eval()
    x, ends = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1)), torch.tensor([4])
    with torch.inference_mode():
        backbone.freeze(lambda own, around: OnnxEngine(own, positions=5, around=around))
        frozen = backbone.tail(x, ends=ends, count=1)
        backbone.norm.weight.mul_(2)
        torch.testing.assert_close(backbone.tail(x, ends=ends, count=1), frozen, rtol=0, atol=0)
        backbone.train().eval()
        torch.testing.assert_close(backbone.tail(x, ends=ends, count=1), 2 * frozen, rtol=1e-5, atol=1e-5)


def test_auto_takes_onnx_for_our_own_backbone_only(monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = model("compact").config, RecommenderConfig(SIZES, ITEMS, 0, 0, backbone="huggingface")
    assert choose_engine("auto", own) is not None
    assert choose_engine("auto", other) is None
    assert choose_engine("torch", own) is None
    monkeypatch.setitem(sys.modules, "recsys.backends.onnx", None)
    assert choose_engine("auto", own) is None
    with pytest.raises(ConfigError, match="onnxruntime cannot be imported") as caught:
        choose_engine("onnx", own)
    assert (caught.value.field, caught.value.value) == ("engine", "onnx")


@pytest.mark.parametrize("make", [partial(OnnxEngine, positions=5), HalfEngine])
def test_an_engine_without_a_table_reads_no_items(make: Callable[[Backbone], Engine]) -> None:
    engine = make(Backbone(d_model=32, layers=1, heads=2, ffn_multiple=2.0, dropout=0.0).eval())
    with pytest.raises(ValueError, match="without around"):
        engine.read(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, dtype=torch.int64))


def test_a_catalog_too_large_for_a_table_is_read_by_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = encoded("onnx", "compact", [3])
    monkeypatch.setattr(ItemInput.freeze, "__kwdefaults__", {"start": None, "limit": 0})
    torch.testing.assert_close(encoded("onnx", "compact", [3]), expected)


def test_an_unknown_engine_and_other_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="no such engine"):
        choose_engine("tensorrt", model("compact").config)
    with pytest.raises(ConfigError, match="`own` only"):
        choose_engine("onnx_int8", RecommenderConfig(SIZES, ITEMS, 0, 0, backbone="huggingface"))
    made = model("compact").double()
    with pytest.raises(ConfigError, match="float32") as caught:
        made.freeze(choose_engine("onnx", made.config))
    assert caught.value.value == "torch.float64 on cpu"
