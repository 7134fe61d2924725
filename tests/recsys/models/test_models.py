from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.decoding.trie import SidTrie
from recsys.errors import ConfigError
from recsys.models import ItemFeatures, RecommenderConfig, TokenRecommender, build_model
from recsys.models.backbone import Backbone, attend
from recsys.models.normaliser import Normaliser

ITEMS, SIZES = 40, (4, 4, 4)


def features() -> ItemFeatures:
    rng = np.random.default_rng(0)
    numbers = rng.choice(64, size=ITEMS, replace=False)
    codes = np.stack([numbers // 16, numbers // 4 % 4, numbers % 4], axis=1).astype(np.int32)
    counts = np.ones(ITEMS, np.int64)
    counts[-3:] = 0
    return ItemFeatures(
        codes,
        rng.standard_normal((ITEMS, 5)).astype(np.float32),
        rng.standard_normal((ITEMS, 3)).astype(np.float32),
        counts,
    )


def model(**changes: object) -> torch.nn.Module:
    torch.manual_seed(0)
    config = RecommenderConfig.from_dict(
        {
            "codebook_sizes": SIZES, "num_items": ITEMS, "text_dim": 5, "collaborative_dim": 3,
            "d_model": 16, "layers": 2, "heads": 2, "max_history": 6, **changes,
        }
    )  # fmt: skip
    return build_model(config, features()).eval()


HISTORIES = torch.tensor([[3, 7, 9, 1], [5, -1, -1, -1], [-1, -1, -1, -1]])
LENGTHS = torch.tensor([4, 1, 0])


@pytest.mark.parametrize("shape", ["compact", "token", "flat"])
def test_padding_and_batch_mates_change_nothing(shape: str) -> None:
    built = model(shape=shape)
    together = built.encode(HISTORIES, LENGTHS)  # type: ignore[operator]
    for row, length in enumerate(LENGTHS.tolist()):
        alone = built.encode(HISTORIES[row : row + 1, :length], LENGTHS[row : row + 1])  # type: ignore[operator]
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-5)


def test_training_states_equal_serving_states_in_the_token_shape() -> None:
    built = model(shape="token")
    assert isinstance(built, TokenRecommender)
    items = torch.tensor([[3, 7, 9, 1]])
    states = built.states(items, None)
    for position in range(4):
        served = built.encode(items[:, :position], torch.tensor([position]))
        torch.testing.assert_close(states.head[:, position], served, rtol=1e-4, atol=1e-5)
        prompt = built.encode_prompt(items[:, :position], torch.tensor([position]))
        torch.testing.assert_close(states.backbone[:, position, 0], prompt.last, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", ["compact", "token"])
def test_without_placeholders_every_level_reads_the_newest_state(shape: str) -> None:
    hidden = model(shape=shape, placeholders=False).encode(HISTORIES, LENGTHS)  # type: ignore[operator]
    assert torch.equal(hidden, hidden[:, :1].expand(-1, len(SIZES) + 1, -1))


def test_without_placeholders_training_equals_serving_in_the_token_shape() -> None:
    built = model(shape="token", placeholders=False)
    assert isinstance(built, TokenRecommender)
    items, drawn = torch.tensor([[3, 7, 9, 1]]), torch.tensor([[8, 2, 6, 5]])
    states, beside = built.states(items, drawn), model(shape="token").states(items, drawn)  # type: ignore[operator]
    for position in range(4):
        served = built.encode(items[:, :position], torch.tensor([position]))
        torch.testing.assert_close(states.head[:, position], served, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(states.backbone, beside.backbone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(states.branch, beside.branch, rtol=1e-4, atol=1e-5)


def test_a_branch_reads_history_and_its_own_codes_only() -> None:
    built = model(shape="token")
    assert isinstance(built, TokenRecommender)
    items, drawn = torch.tensor([[3, 7, 9]]), torch.tensor([[8, 2, 6]])
    states = built.states(items, drawn)
    replaced = items.clone()
    replaced[0, 1] = 2  # the drawn item really happens at position 1
    really = built.states(replaced, None)
    assert states.branch is not None
    torch.testing.assert_close(states.branch[:, 1], really.backbone[:, 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", ["compact", "token"])
def test_the_future_leaves_earlier_states_untouched(shape: str) -> None:
    built = model(shape=shape)
    one, two = torch.tensor([[3, 7, 9, 1]]), torch.tensor([[3, 7, 9, 22]])
    read: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "compact": lambda items: built.trunk(items)[:, :4],  # type: ignore[operator]
        "token": lambda items: built.states(items, None).head,  # type: ignore[operator]
    }
    one, two = read[shape](one), read[shape](two)
    torch.testing.assert_close(one, two)


def test_a_cache_gives_the_same_states() -> None:
    torch.manual_seed(0)
    backbone = Backbone(d_model=16, layers=2, heads=2, ffn_multiple=2.0, dropout=0.0).eval()
    x = torch.randn(2, 6, 16)
    positions = torch.arange(6).expand(2, -1)
    whole, _ = backbone(x, positions=positions)
    _, cache = backbone(x[:, :4], positions=positions[:, :4])
    mask = torch.ones(6, 6, dtype=torch.bool).tril()[4:][None, None]
    rest, _ = backbone(x[:, 4:], positions=positions[:, 4:], mask=mask, cache=cache)
    torch.testing.assert_close(rest, whole[:, 4:], rtol=1e-4, atol=1e-5)


def test_plain_attention_equals_the_kernel() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 5, 8) for _ in range(3))
    low = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), None).float()
    torch.testing.assert_close(low, F.scaled_dot_product_attention(q, k, v, is_causal=True), rtol=0.05, atol=0.05)


def test_items_without_training_enter_as_unknown() -> None:
    built = model(shape="compact")
    before = built.trunk.input(torch.tensor([0, ITEMS - 1]))  # type: ignore[operator,union-attr]
    with torch.no_grad():
        built.trunk.input.id_embedding.weight.add_(1.0)  # type: ignore[union-attr,operator]
    after = built.trunk.input(torch.tensor([0, ITEMS - 1]))  # type: ignore[operator,union-attr]
    assert not torch.allclose(before[0], after[0])
    torch.testing.assert_close(before[1], after[1])


@pytest.mark.parametrize("whole", [True, False])
def test_the_normaliser_equals_a_brute_force_softmax(whole: bool) -> None:
    codes = features().codes
    trie = SidTrie.build(codes, SIZES)
    normaliser = Normaliser(trie, whole_codebook=whole)
    logits = torch.randn(ITEMS, 4, generator=torch.Generator().manual_seed(1))
    for level in range(3):
        found = normaliser.log_prob(level, logits, torch.arange(ITEMS))
        for item in range(ITEMS):
            siblings = {int(c[level]) for c in codes if (c[:level] == codes[item, :level]).all()}
            allowed = list(range(4)) if whole else sorted(siblings)
            expected = logits[item, codes[item, level]] - logits[item, allowed].logsumexp(0)
            assert float(found[item]) == pytest.approx(float(expected), abs=1e-5)


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_states_meet_the_rows_of_their_prefixs_children(seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(size, size=60) for size in (2, 3, 6)], axis=1)
    trie = SidTrie.build(codes, (2, 3, 6))
    normaliser = Normaliser(trie)
    items = torch.from_numpy(rng.integers(60, size=25))
    rows, states = torch.from_numpy(rng.standard_normal((60, 5))), torch.from_numpy(rng.standard_normal((25, 5)))
    for level in (1, 2):
        logits = torch.from_numpy(rng.standard_normal((25, trie.sizes[level])))
        found = normaliser.log_prob(level, logits, items, (states, normaliser.prefix_rows(level, rows)))
        node = trie.item_node
        for at, item in enumerate(items.tolist()):
            siblings = np.unique(node[node[:, level - 1] == node[item, level - 1], level])
            means = torch.stack([rows[torch.from_numpy(node[:, level] == one)].mean(0) for one in siblings])
            scores = logits[at, torch.from_numpy(trie.node_code[level][siblings]).long()] + means @ states[at]
            expected = scores.log_softmax(0)[int(np.flatnonzero(siblings == node[item, level])[0])]
            assert float(found[at]) == pytest.approx(float(expected), abs=1e-5)


def test_a_configuration_survives_its_dict() -> None:
    config = model(shape="token").config
    assert RecommenderConfig.from_dict(config.to_dict()) == config  # type: ignore[union-attr,operator]


@pytest.mark.parametrize(
    ("field", "value"), [("shape", "round"), ("d_model", 15), ("codebook_sizes", ()), ("layers", 0), ("colour", 1)]
)
def test_a_bad_configuration_names_the_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        model(**{field: value})


@pytest.mark.parametrize("other", [{"shape": "token"}, {"shape": "flat"}, {"whole_codebook": True}])
def test_rows_of_items_ask_for_the_compact_shape_and_for_children(other: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="item_rows"):
        model(item_rows=True, **other)
