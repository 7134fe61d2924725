"""Controls are what they are named, and the identity where they should be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from recsys.errors import ConfigError, InputError
from training.smec.controls import MatryoshkaAdaptor, PrincipalComponents, SearchAdaptor, Truncation
from training.smec.course import CompressorCourse, principal_axes
from training.smec.data import unit
from training.smec.fitting import Fitting
from training.smec.settings import SmecSettings

if TYPE_CHECKING:
    from training.smec.course import Reducer
    from training.smec.data import VectorData

PLAIN = SmecSettings(halvings=2, rotate=False, steps=12, batch=16, anchors=16, neighbours=3, learning_rate=1e-2)


def table(data: VectorData) -> torch.Tensor:
    return torch.from_numpy(data.table)


def adaptors(data: VectorData, settings: SmecSettings) -> list[MatryoshkaAdaptor | SearchAdaptor]:
    return [
        MatryoshkaAdaptor(table(data), settings, torch.Generator().manual_seed(1)),
        SearchAdaptor(table(data), settings),
    ]


def test_truncation_at_full_width_is_the_identity(labelled: VectorData) -> None:
    np.testing.assert_allclose(Truncation(16, 2).reduce(labelled.documents, 16), labelled.documents, atol=1e-6)


def test_principal_components_at_full_width_keep_every_similarity(labelled: VectorData) -> None:
    found = PrincipalComponents(labelled.table, 2).reduce(labelled.documents, 16)
    np.testing.assert_allclose(found @ found.T, labelled.documents @ labelled.documents.T, atol=1e-5)


def test_principal_components_are_the_best_of_their_width(labelled: VectorData) -> None:
    """No projection of the same width keeps more of the sum of squares (Eckart, Young)."""
    axes = principal_axes(table(labelled)).numpy()
    np.testing.assert_allclose(axes @ axes.T, np.eye(16), atol=1e-5)
    values = np.linalg.svd(labelled.table.astype(np.float64), compute_uv=False)
    for width in (8, 4):
        kept = np.square(labelled.table @ axes[:width].T).sum()
        assert kept == pytest.approx(np.square(values[:width]).sum(), rel=1e-5)


def test_centred_components_are_those_of_the_covariance(labelled: VectorData) -> None:
    found = PrincipalComponents(labelled.table, 2, centred=True)
    centred = labelled.table - labelled.table.mean(axis=0)
    projected = centred @ principal_axes(table(labelled), torch.from_numpy(labelled.table.mean(axis=0))).numpy()[:4].T
    np.testing.assert_allclose(found.reduce(labelled.table, 4), unit(projected.astype(np.float32)), atol=1e-4)


def test_untrained_adaptors_are_truncation_and_with_axes_principal_components(labelled: VectorData) -> None:
    for method in adaptors(labelled, PLAIN):
        for width in method.widths:
            expected = Truncation(16, 2).reduce(labelled.documents, width)
            np.testing.assert_allclose(method.reduce(labelled.documents, width), expected, atol=1e-6)
    for method in adaptors(labelled, PLAIN.model_copy(update={"rotate": True})):
        expected = PrincipalComponents(labelled.table, 2).reduce(labelled.documents, 4)
        np.testing.assert_allclose(method.reduce(labelled.documents, 4), expected, atol=1e-5)


def test_the_untrained_matryoshka_adaptor_at_full_width_is_the_identity(labelled: VectorData) -> None:
    method = adaptors(labelled, PLAIN)[0]
    torch.testing.assert_close(method.adapted(table(labelled), 16), table(labelled))


def test_a_search_adaptors_widths_do_not_touch_one_another(labelled: VectorData) -> None:
    method = SearchAdaptor(table(labelled), PLAIN)
    fitting = Fitting(method, labelled, PLAIN, seed=1)
    for _ in range(PLAIN.steps):
        fitting.advance()
    wide = method.maps[0].state_dict()["weight"].clone()
    assert float(method.maps[1].state_dict()["weight"].abs().sum()) == 0
    fitting.run()
    assert torch.equal(method.maps[0].state_dict()["weight"], wide)
    assert float(method.maps[1].state_dict()["weight"].abs().sum()) > 0


def test_all_methods_make_equal_steps(labelled: VectorData) -> None:
    courses = [
        *adaptors(labelled, PLAIN),
        CompressorCourse(table(labelled), PLAIN),
        CompressorCourse(table(labelled), PLAIN.model_copy(update={"sequential": False})),
    ]
    assert {course.steps * len(course.phases) for course in courses} == {24}


def test_bad_widths_and_vectors_are_refused(labelled: VectorData) -> None:
    methods: list[Reducer] = [Truncation(16, 2), PrincipalComponents(labelled.table, 2), *adaptors(labelled, PLAIN)]
    for method in methods:
        with pytest.raises(ConfigError, match="no such width"):
            method.reduce(labelled.documents, 17)
        with pytest.raises(InputError, match=r"\(B, 16\)"):
            method.reduce(labelled.documents[:, :9], 8)


def test_lengths_say_nothing_and_zero_vectors_stay_zero(labelled: VectorData) -> None:
    methods: list[Reducer] = [PrincipalComponents(labelled.table, 2, centred=True), *adaptors(labelled, PLAIN)]
    for method in methods[1:]:
        assert isinstance(method, torch.nn.Module)
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    for method in methods:
        short = method.reduce(labelled.documents, 4)
        np.testing.assert_allclose(method.reduce(20 * labelled.documents, 4), short, atol=1e-5)
        assert not method.reduce(np.zeros((1, 16), np.float32), 4).any()
