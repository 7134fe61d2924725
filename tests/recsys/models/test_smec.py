"""A compressor is deterministic, keeps exactly the widths it names, and is one matrix per width."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from recsys.errors import ConfigError, InputError
from recsys.models.smec import Compressor, CompressorConfig, Stage

SWITCHES = pytest.mark.parametrize(
    ("sequential", "selection"), [(True, True), (True, False), (False, True), (False, False)]
)


def randomised(config: CompressorConfig, seed: int = 0) -> Compressor:
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(config.dimension, config.dimension, generator=generator)).Q
    model = Compressor(config, rotation)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def some_vectors(rows: int = 9, width: int = 16, seed: int = 3) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@SWITCHES
def test_folded_and_stacked_agree_at_every_width(sequential: bool, selection: bool) -> None:
    model = randomised(CompressorConfig(16, 3, sequential, selection))
    x = some_vectors()
    for width in (16, *model.widths):
        np.testing.assert_allclose(model.reduce(x.numpy(), width), model(x, width).detach(), atol=2e-6)


@SWITCHES
def test_before_training_it_is_truncation(sequential: bool, selection: bool) -> None:
    model = Compressor(CompressorConfig(16, 3, sequential, selection))
    x = some_vectors()
    for width in (16, *model.widths):
        torch.testing.assert_close(model(x, width), functional.normalize(x[:, :width], dim=1))


@SWITCHES
def test_a_vectors_length_says_nothing_and_a_zero_vector_stays_one(sequential: bool, selection: bool) -> None:
    """Trained on unit vectors, a bias must not weigh less beside a longer one."""
    model = randomised(CompressorConfig(16, 3, sequential, selection))
    x = functional.normalize(some_vectors(), dim=1)
    for width in model.widths:
        for scale in (1e-3, 40.0):
            np.testing.assert_allclose(model.reduce((scale * x).numpy(), width), model(x, width).detach(), atol=2e-6)
            torch.testing.assert_close(model(scale * x, width), model(x, width))
        zero = np.zeros((1, 16), np.float32)
        assert not model.reduce(zero, width).any()
        assert not model(torch.from_numpy(zero), width).any()


def test_at_full_width_it_is_the_identity_whatever_was_trained() -> None:
    model = randomised(CompressorConfig(16, 2))
    x = functional.normalize(some_vectors(), dim=1)
    torch.testing.assert_close(model(x, 16), x)


@SWITCHES
def test_vectors_do_not_depend_on_their_neighbours_and_have_unit_length(sequential: bool, selection: bool) -> None:
    model = randomised(CompressorConfig(16, 3, sequential, selection))
    x = some_vectors()
    for width in model.widths:
        found = model(x, width)
        assert found.shape == (9, width)
        torch.testing.assert_close(found[4:5], model(x[4:5], width))
        torch.testing.assert_close(found.norm(dim=1), torch.ones(9))
        assert torch.equal(found, model(x, width))


@given(st.lists(st.integers(-3, 3), min_size=8, max_size=8), st.integers(1, 8))
def test_the_kept_are_exactly_so_many_and_the_largest_of_all_orders(logits: list[int], count: int) -> None:
    stage = Stage(8, selection=True)
    assert stage.logits is not None
    with torch.no_grad():
        stage.logits.copy_(torch.tensor(logits, dtype=torch.float32))
    expected = sorted(sorted(range(8), key=lambda dim: (-logits[dim], dim))[:count])
    assert stage.kept(count).tolist() == expected
    assert stage.kept(count).tolist() == stage.kept(count).tolist()


@given(st.integers(0, 10_000), st.floats(0.05, 20.0))
def test_a_drawn_mask_is_hard_nested_and_straight_through(seed: int, temperature: float) -> None:
    stage = Stage(8, selection=True)
    masks = stage.masks([6, 3, 1], temperature=temperature, generator=torch.Generator().manual_seed(seed))
    assert [float(mask.detach().sum()) for mask in masks] == [6.0, 3.0, 1.0]
    assert all(set(mask.tolist()) <= {0.0, 1.0} for mask in masks)
    assert all(bool((small <= large).all()) for large, small in pairwise(masks))
    (masks[1] * torch.arange(8.0)).sum().backward()  # type: ignore[no-untyped-call]
    assert stage.logits is not None
    assert stage.logits.grad is not None
    assert float(stage.logits.grad.abs().sum()) > 0


def test_masks_are_drawn_in_proportion_to_the_exponentials_of_the_logits() -> None:
    stage = Stage(4, selection=True)
    assert stage.logits is not None
    weights = torch.tensor([0.5, 0.3, 0.15, 0.05])
    with torch.no_grad():
        stage.logits.copy_(weights.log())
    generator = torch.Generator().manual_seed(5)
    drawn = sum(stage.masks([1], temperature=1.0, generator=generator)[0].detach() for _ in range(4000))
    torch.testing.assert_close(torch.as_tensor(drawn) / 4000, weights, atol=0.03, rtol=0)


def test_a_low_temperature_changes_the_gradient_and_not_the_choice() -> None:
    stage = Stage(40, selection=True)
    assert stage.logits is not None
    with torch.no_grad():
        stage.logits.copy_(torch.arange(40.0) * 20)
    (mask,) = stage.masks([10], temperature=0.05, generator=torch.Generator().manual_seed(1))
    assert mask.detach().nonzero()[:, 0].tolist() == list(range(30, 40))


def test_without_selection_nothing_is_drawn() -> None:
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    masks = Stage(4, selection=False).masks([2], temperature=1.0, generator=generator)
    assert masks[0].tolist() == [1, 1, 0, 0]
    assert torch.equal(before, generator.get_state())


@pytest.mark.parametrize(("dimension", "halvings"), [(12, 3), (16, 0), (16, 5), (0, 1)])
def test_widths_that_are_no_integers_are_refused(dimension: int, halvings: int) -> None:
    with pytest.raises(ConfigError, match="halvings"):
        CompressorConfig(dimension, halvings)


def test_bad_input_is_refused() -> None:
    model = Compressor(CompressorConfig(16, 2))
    with pytest.raises(ConfigError, match="no such width"):
        model.reduce(np.ones((1, 16), np.float32), 5)
    with pytest.raises(ConfigError, match="no such width"):
        model.fold(5)
    with pytest.raises(InputError, match=r"\(B, 16\)"):
        model.reduce(np.ones((1, 15), np.float32), 8)
    with pytest.raises(InputError, match="row 1 of 2"):
        model.reduce(np.array([[1.0] * 16, [np.nan] * 16], np.float32), 8)
    with pytest.raises(ConfigError, match="rotation"):
        Compressor(CompressorConfig(16, 2), torch.eye(8))
    with pytest.raises(ConfigError, match="not the configuration"):
        CompressorConfig.from_dict({"dimension": 16})
