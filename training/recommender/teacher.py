"""Distillation targets: what a collaborative teacher would recommend at every training position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from scipy.special import softmax

from recsys.baselines.ease import Ease, EaseSettings
from recsys.baselines.item_cf import ItemCF, ItemCFSettings, truncated
from recsys.baselines.sasrec import SasRec, SasRecSettings
from recsys.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from recsys.datasets.prepared import PreparedData, Sequences
    from training.recommender.settings import TeacherSettings


class ItemScorer(Protocol):
    """Scores every item for a batch of histories."""

    def score(self, histories: Sequence[npt.NDArray[np.integer]]) -> npt.NDArray[np.float32]:
        """Histories, oldest first -> (B, I)."""
        ...


@dataclass(frozen=True, slots=True)
class TeacherTargets:
    """Per training event the teacher's best items, given the events before it.

    Attributes:
        row: (E,) int32 row of an event in the tables below, -1 where the teacher is silent (first events,
            events outside the training part).
        items: (N, K) int32.
        cumulative: (N, K) float32 cumulative probabilities, the last column is 1.
    """

    row: npt.NDArray[np.int32]
    items: npt.NDArray[np.int32]
    cumulative: npt.NDArray[np.float32]

    def sample(
        self, positions: torch.Tensor, count: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw items at events.

        Args:
            positions: (N,) places in `Sequences.items`.
            count: draws M per event.
            generator: CPU generator.

        Returns:
            items (N, M) int64, and (N,) bool: whether the teacher speaks there.
        """
        row = self.row[positions.numpy()]
        spoken = row >= 0
        row = np.maximum(row, 0)
        draws = torch.rand((len(row), count), generator=generator).numpy()
        chosen = (self.cumulative[row][:, None, :] < draws[:, :, None]).sum(axis=2)  # (N, M)
        chosen = np.minimum(chosen, self.items.shape[1] - 1)
        items = np.take_along_axis(self.items[row], chosen, axis=1)
        return torch.from_numpy(items.astype(np.int64)), torch.from_numpy(spoken)


def teacher_targets(
    sequences: Sequences,
    scorer: ItemScorer,
    *,
    top: int,
    sharpness: float,
    mask_history: bool,
    max_history: int,
    users: npt.NDArray[np.int64] | None = None,
    batch: int = 1024,
) -> TeacherTargets:
    """Ask the teacher at every training event but the first of each user.

    The distribution is proportional to max(score, 0)^sharpness over the `top` best items.

    Args:
        sequences: whose training part is read.
        scorer: the teacher, fitted on training interactions only.
        top: K items kept per event.
        sharpness: exponent of the scores.
        mask_history: whether items of the history are left out.
        max_history: newest items the teacher sees.
        users: only these users' events (for cross-fitting); None = all.
        batch: histories scored at once.
    """
    chosen = np.arange(sequences.users) if users is None else users
    counts = np.maximum(sequences.train_end[chosen] - 1, 0)
    owner = np.repeat(chosen, counts)  # (N,)
    step = np.concatenate([np.arange(1, count + 1) for count in counts]) if counts.sum() else np.zeros(0, int)
    positions = sequences.offsets[owner] + step
    row = np.full(len(sequences.items), -1, dtype=np.int32)
    items = np.empty((len(positions), top), dtype=np.int32)
    cumulative = np.empty((len(positions), top), dtype=np.float32)
    kept = 0
    for begin in range(0, len(positions), batch):
        part = positions[begin : begin + batch]
        length = np.minimum(step[begin : begin + batch], max_history)
        histories = [sequences.items[p - n : p] for p, n in zip(part, length, strict=True)]
        scores = scorer.score(histories)  # (b, I)
        if mask_history:
            for line, history in zip(scores, histories, strict=True):
                line[history] = 0.0
        best = np.argpartition(scores, -top, axis=1)[:, -top:]  # (b, K)
        weight = np.maximum(np.take_along_axis(scores, best, axis=1), 0.0) ** sharpness
        total = weight.sum(axis=1, keepdims=True)
        speaks = total[:, 0] > 0
        rows = slice(kept, kept + int(speaks.sum()))
        items[rows] = best[speaks]
        cumulative[rows] = np.cumsum(weight[speaks] / total[speaks], axis=1)
        row[part[speaks]] = np.arange(rows.start, rows.stop)
        kept = rows.stop
    return TeacherTargets(row, items[:kept], cumulative[:kept])


def build_teacher(data: PreparedData, settings: TeacherSettings, max_history: int) -> TeacherTargets | None:
    """Fit the teacher that the settings name and ask it at every training event.

    With several folds the events of a fold's users are answered by a teacher fitted on the other users.

    Args:
        data: only its training part is read; SASRec also keeps the weights that are best on the validation part.
        settings: which teacher.
        max_history: newest items the teacher sees.

    Returns:
        None for kind `none`, and where the teacher never speaks (a log of single events or of one item).
    """
    if settings.kind == "none":
        return None
    parts: list[TeacherTargets] = []
    users = np.arange(data.sequences.users)
    for fold in range(settings.folds):
        inside = users % settings.folds == fold
        scorer, sharpness = _fit_teacher(data, settings, max_history, None if settings.folds == 1 else users[~inside])
        parts.append(
            teacher_targets(
                data.sequences,
                scorer,
                top=min(settings.top, len(data.codes)),
                sharpness=sharpness,
                mask_history=settings.mask_history,
                max_history=max_history,
                users=users[inside],
            )
        )
    merged = merge(parts)
    return merged if len(merged.items) else None


def merge(parts: list[TeacherTargets]) -> TeacherTargets:
    """Join the answers for disjoint sets of users."""
    row = parts[0].row.copy()
    before = len(parts[0].items)
    for part in parts[1:]:
        row = np.where(part.row >= 0, part.row + before, row)
        before += len(part.items)
    return TeacherTargets(
        row.astype(np.int32),
        np.concatenate([part.items for part in parts]),
        np.concatenate([part.cumulative for part in parts]),
    )


class _Softmaxed:
    """Scores that may be negative as probabilities."""

    def __init__(self, scorer: ItemScorer) -> None:
        self._scorer = scorer

    def score(self, histories: Sequence[npt.NDArray[np.integer]]) -> npt.NDArray[np.float32]:
        """Histories, oldest first -> (B, I)."""
        probability: npt.NDArray[np.float32] = softmax(self._scorer.score(histories), axis=1)
        return probability


class Ensemble:
    """The mean of what several teachers would draw from, each with the same weight wherever it speaks.

    Args:
        scorers: the members.
        sharpness: exponent of each member's scores.
        mask_history: whether items of the history are left out before the members are brought to one scale.
    """

    def __init__(self, scorers: Sequence[ItemScorer], sharpness: float, *, mask_history: bool) -> None:
        self._scorers, self._sharpness, self._mask_history = scorers, sharpness, mask_history

    def score(self, histories: Sequence[npt.NDArray[np.integer]]) -> npt.NDArray[np.float32]:
        """Histories, oldest first -> (B, I) probabilities, summing to the share of the members that speak."""
        parts = [self._probability(scorer, histories) for scorer in self._scorers]
        mean: npt.NDArray[np.float32] = np.mean(parts, axis=0)
        return mean

    def _probability(self, scorer: ItemScorer, histories: Sequence[npt.NDArray[np.integer]]) -> npt.NDArray[np.float32]:
        weight = np.maximum(scorer.score(histories), 0) ** self._sharpness  # (B, I)
        if self._mask_history:
            for line, history in zip(weight, histories, strict=True):
                line[history] = 0.0
        mass = weight.sum(axis=1, keepdims=True)
        return np.asarray(weight / np.where(mass > 0, mass, 1), dtype=np.float32)


def _fit_teacher(
    data: PreparedData, settings: TeacherSettings, max_history: int, users: npt.NDArray[np.int64] | None
) -> tuple[ItemScorer, float]:
    """The teacher, and the exponent of its scores."""
    if settings.kind != "ensemble":
        return _fit_one(settings.kind, data, settings, max_history, users), settings.sharpness
    members = [_fit_one(kind, data, settings, max_history, users) for kind in settings.members]
    return Ensemble(members, settings.sharpness, mask_history=settings.mask_history), 1.0


def _fit_one(
    kind: str, data: PreparedData, settings: TeacherSettings, max_history: int, users: npt.NDArray[np.int64] | None
) -> ItemScorer:
    if kind == "sasrec":
        if users is not None:
            raise ConfigError(
                "SASRec is fitted on all users", field="teacher.folds", value=settings.folds, remedy="use 1"
            )
        return _Softmaxed(SasRec.fit(data, SasRecSettings(max_history=max_history), seed=settings.seed))
    if kind == "ease":
        return Ease.fit(data, EaseSettings(settings.regularisation, settings.decay, max_history), users=users)
    fitted = ItemCF.fit(data, ItemCFSettings(decay=settings.decay, max_history=max_history), users=users)
    return ItemCF(truncated(fitted.similarity, settings.neighbours), fitted.settings)
