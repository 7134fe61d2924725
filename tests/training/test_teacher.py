from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from recsys.errors import ConfigError
from training.recommender.settings import TeacherSettings
from training.recommender.teacher import Ensemble, build_teacher

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from recsys.datasets.prepared import PreparedData


class _Fixed:
    """The same scores for everybody."""

    def __init__(self, *scores: float) -> None:
        self._scores = np.array(scores, dtype=np.float32)

    def score(self, histories: Sequence[npt.NDArray[np.integer]]) -> npt.NDArray[np.float32]:
        return np.tile(self._scores, (len(histories), 1))


@pytest.mark.parametrize(
    ("kind", "folds"), [("ease", 1), ("ease", 3), ("item_to_item", 1), ("item_to_item", 3), ("ensemble", 1)]
)
def test_the_teacher_speaks_at_all_but_first_events(kind: str, folds: int, tiny_data: PreparedData) -> None:
    teacher = build_teacher(tiny_data, TeacherSettings.model_validate({"kind": kind, "folds": folds, "top": 5}), 8)
    assert teacher is not None
    first = tiny_data.sequences.offsets[:-1]
    assert (teacher.row[first] == -1).all()
    assert (teacher.row >= 0).sum() > 0.5 * (tiny_data.sequences.train_end - 1).clip(0).sum()
    generator = torch.Generator().manual_seed(0)
    positions = torch.from_numpy(np.flatnonzero(teacher.row >= 0))
    items, spoken = teacher.sample(positions, 3, generator)
    assert spoken.all()
    assert items.shape == (len(positions), 3)
    assert ((items >= 0) & (items < 60)).all()


@pytest.mark.parametrize("kind", ["ease", "item_to_item"])
def test_a_cross_fitted_teacher_has_not_seen_the_user(kind: str, tiny_data: PreparedData) -> None:
    """One user's walk is changed behind its first two events: what the teacher says there stays as it was."""
    sequences = tiny_data.sequences
    user = int(np.flatnonzero(sequences.train_end >= 5)[0])
    place = int(sequences.offsets[user])
    items = sequences.items.copy()
    items[place + 2 : place + 5] = [41, 17, 29]
    changed = replace(tiny_data, sequences=replace(sequences, items=items))
    chosen = TeacherSettings.model_validate({"kind": kind, "folds": 2, "top": 5})
    said = [build_teacher(data, chosen, 8) for data in (tiny_data, changed)]
    rows = [teacher.items[teacher.row[place + 1]] for teacher in said if teacher is not None]
    np.testing.assert_array_equal(rows[0], rows[1])


def test_an_ensemble_is_the_mean_of_what_its_members_draw_from() -> None:
    members = [_Fixed(3.0, -1.0, 1.0, 0.0), _Fixed(0.0, 2.0, 2.0, 9.0)]
    histories = [np.array([3]), np.array([], dtype=np.int64)]
    masked = Ensemble(members, 2.0, mask_history=True).score(histories)
    np.testing.assert_allclose(masked[0], [0.45, 0.25, 0.05 + 0.25, 0.0], rtol=1e-6)
    np.testing.assert_allclose(masked[1], [0.45, 2 / 89, 0.05 + 2 / 89, 81 / 178], rtol=1e-6)


def test_a_member_that_is_silent_leaves_the_others_their_share() -> None:
    silent = Ensemble([_Fixed(0.0, 0.0), _Fixed(1.0, 1.0)], 1.0, mask_history=False)
    np.testing.assert_allclose(silent.score([np.array([0])]), [[0.25, 0.25]])


def test_sasrec_is_not_cross_fitted(tiny_data: PreparedData) -> None:
    with pytest.raises(ConfigError, match="all users") as caught:
        build_teacher(tiny_data, TeacherSettings(kind="sasrec", folds=2), 8)
    assert caught.value.field == "teacher.folds"
