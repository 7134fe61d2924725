"""Earlier stages stay as they are; learning helps; an interrupted fit goes on bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from training.smec.controls import MatryoshkaAdaptor, PrincipalComponents, Truncation
from training.smec.course import CompressorCourse
from training.smec.data import VectorData
from training.smec.fitting import Fitting
from training.smec.measuring import measure
from training.smec.settings import SmecSettings

SETTINGS = SmecSettings(
    halvings=2, steps=20, warmup_steps=2, batch=16, anchors=16, neighbours=3, memory=40, learning_rate=1e-2
)
ROWS = np.arange(90)


def course(data: VectorData, **changes: Any) -> tuple[CompressorCourse, SmecSettings]:
    settings = SETTINGS.model_copy(update=changes)
    return CompressorCourse(torch.from_numpy(data.table), settings), settings


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("selection", [True, False])
def test_earlier_stages_stay_bit_identical_while_later_ones_train(labelled: VectorData, selection: bool) -> None:
    found, settings = course(labelled, selection=selection, halvings=3)
    fitting = Fitting(found, labelled, settings, seed=1)
    before, short = [], []
    for stage, width in enumerate(found.widths):
        untrained = weights(found.module.stages[stage])
        for _ in range(settings.steps):
            fitting.advance()
        before.append(weights(found.module.stages[stage]))
        short.append(found.reduce(labelled.documents, width))
        assert not torch.equal(before[stage]["delta"], untrained["delta"])
    assert fitting.done
    for stage, width in enumerate(found.widths):
        after = weights(found.module.stages[stage])
        assert all(torch.equal(after[name], before[stage][name]) for name in after)
        np.testing.assert_array_equal(found.reduce(labelled.documents, width), short[stage])


@pytest.mark.parametrize("changes", [{}, {"sequential": False}, {"selection": False}, {"memory": 0}])
@pytest.mark.parametrize("cut", [7, 20, 26])
def test_a_fit_that_was_interrupted_equals_one_that_was_not(
    labelled: VectorData, changes: dict[str, Any], cut: int
) -> None:
    whole, settings = course(labelled, **changes)
    Fitting(whole, labelled, settings, seed=1).run()
    first, _ = course(labelled, **changes)
    begun = Fitting(first, labelled, settings, seed=1)
    for _ in range(cut):
        begun.advance()
    second, _ = course(labelled, **changes)
    resumed = Fitting(second, labelled, settings, seed=1)
    second.module.load_state_dict(weights(first.module))
    resumed.restore({name: value.clone() for name, value in begun.state().items()})
    assert resumed.steps_done == cut
    resumed.run()
    expected, found = weights(whole.module), weights(second.module)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_another_seed_is_another_fit_and_the_same_seed_the_same(labelled: VectorData) -> None:
    fits = []
    for seed in (1, 1, 2):
        found, settings = course(labelled)
        Fitting(found, labelled, settings, seed=seed).run()
        fits.append(found.module.stage(0).delta.detach())
    assert torch.equal(fits[0], fits[1])
    assert not torch.equal(fits[0], fits[2])


def test_labels_lift_held_out_queries_above_truncation(labelled: VectorData) -> None:
    train, held = labelled.split(0.3, seed=1)
    found, settings = course(train, rotate=False)
    Fitting(found, train, settings, seed=1).run()
    ours, cut = (measure(method, held, ROWS, 4)["ndcg@10"].mean() for method in (found, Truncation(16, 2)))
    assert ours > cut + 0.2


@pytest.mark.parametrize("changes", [{}, {"sequential": False, "selection": False, "memory": 0}])
def test_without_labels_neighbourhoods_are_kept_better_than_by_truncation(
    unlabelled: VectorData, changes: dict[str, Any]
) -> None:
    found, settings = course(unlabelled, steps=60, **changes)
    Fitting(found, unlabelled, settings, seed=1).run()
    ours, cut = (measure(m, unlabelled, ROWS, 8)["neighbours@10"].mean() for m in (found, Truncation(16, 2)))
    assert ours > cut + 0.1


def test_the_choice_of_dimensions_learns(labelled: VectorData) -> None:
    """The first half of the dimensions is noise, here the louder half: the choice begins there and must leave."""
    loud = np.where(np.arange(16) < 8, 4.0, 1.0).astype(np.float32)
    data = VectorData(labelled.documents * loud, labelled.queries * loud, labelled.judgements)
    found, settings = course(data, rotate=False, logit_rate=0.1, steps=60, halvings=1)
    fitting = Fitting(found, data, settings, seed=1)
    noise = [int((found.module.stage(0).kept(8) < 8).sum())]
    fitting.run()
    noise.append(int((found.module.stage(0).kept(8) < 8).sum()))
    assert noise[0] >= 6
    assert noise[1] <= 2


def test_the_matryoshka_adaptor_learns_beyond_its_start(labelled: VectorData) -> None:
    train, held = labelled.split(0.3, seed=1)
    settings = SETTINGS.model_copy(update={"rotate": False})
    found = MatryoshkaAdaptor(torch.from_numpy(train.table), settings, torch.Generator().manual_seed(1))
    Fitting(found, train, settings, seed=1).run()
    ours, cut = (measure(method, held, ROWS, 4)["ndcg@10"].mean() for method in (found, Truncation(16, 2)))
    assert ours > cut + 0.1


def test_vectors_without_a_direction_are_never_anchors(unlabelled: VectorData) -> None:
    documents = unlabelled.documents.copy()
    documents[:80] = 0
    data = VectorData.unlabelled(documents)
    assert data.pool.tolist() == list(range(80, 90))
    found, settings = course(data)
    Fitting(found, data, settings, seed=1).run()
    assert all(bool(value.isfinite().all()) for value in weights(found.module).values())
    assert (PrincipalComponents(data.table, 2).reduce(documents[:1], 8) == 0).all()
