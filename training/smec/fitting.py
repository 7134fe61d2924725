"""One training, in memory, step by step: phases one after the other, each of them frozen when the next begins.

A step is a pure function of weights, optimiser, memory, seed and its number, so that a run that was interrupted goes on
bit for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch.nn import functional

from recsys.evaluation.judged import nearest
from training.schedule import warmup_cosine
from training.smec.batches import Labelled, together
from training.smec.losses import neighbour_loss, rank_loss, recovery_loss
from training.smec.memory import CrossBatchMemory

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from training.smec.batches import Batch
    from training.smec.course import Course, Phase
    from training.smec.data import VectorData
    from training.smec.settings import SmecSettings

_BETAS: Final = (0.9, 0.98)
_ROWS_AT_ONCE: Final = 2048


class Fitting:
    """Trains a course on vectors, with the rank loss where they have labels.

    Args:
        course: what is trained; its parameters change.
        data: vectors and labels.
        settings: of the steps.
        seed: of batches and draws.

    Attributes:
        phase: the number of the phase that the next step belongs to; that of the last one when all is done.
        step: steps done in it.
    """

    def __init__(self, course: Course, data: VectorData, settings: SmecSettings, *, seed: int) -> None:
        self.course, self.data, self.settings, self.seed = course, data, settings, seed
        self.phase = self.step = 0
        self._device = next(course.module.parameters()).device
        self._table = torch.from_numpy(data.table).to(self._device)  # (T, N)
        self._labelled = None if data.judgements is None else Labelled(data, settings)
        self._memory = CrossBatchMemory(
            settings.memory if course.terms.source == "memory" else 0, data.dimension, self._device
        )
        self._corpus = self._all_neighbours() if course.terms.source == "corpus" else None
        course.module.requires_grad_(requires_grad=False)
        self._enter(fresh=True)

    @property
    def total(self) -> int:
        """Steps of all phases."""
        return self.course.steps * len(self.course.phases)

    @property
    def steps_done(self) -> int:
        """Steps of all phases so far."""
        return self.course.steps * self.phase + self.step

    @property
    def done(self) -> bool:
        """Whether no step is left."""
        return self.steps_done == self.total

    def run(self) -> None:
        """All steps that are left."""
        while not self.done:
            self.advance()

    def advance(self) -> float:
        """One step; returns its loss."""
        if self.step == self.course.steps:
            self.phase, self.step = self.phase + 1, 0
            self._enter(fresh=True)
        settings = self.settings
        for group in self._optimiser.param_groups:
            group["lr"] = warmup_cosine(
                self.step,
                peak=group["peak"],
                steps=self.course.steps,
                warmup=settings.warmup_steps,
                final=settings.final_rate,
            )
        rng = np.random.default_rng([self.seed, self.phase, self.step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        loss = self._loss(self._batch(rng), generator)
        self._optimiser.zero_grad(set_to_none=False)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._trained, settings.clip)
        self._optimiser.step()
        self.step += 1
        return float(loss.detach())

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on and that is not in the module's own state."""
        tensors = {f"memory/{name}": value for name, value in self._memory.state().items()}
        for index, slots in self._optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{index}/{slot}": value for slot, value in slots.items()}
        return tensors | {"place": torch.tensor([self.phase, self.step])}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` gave; the module's own state is loaded before."""
        self.phase, self.step = state["place"].tolist()
        self._enter(fresh=False)
        self._memory.restore({name: state[f"memory/{name}"] for name in ("rows", "next")}, self._table)
        slots: dict[int, dict[str, Any]] = {}
        for name, value in state.items():
            if name.startswith("optimiser/"):
                _, index, slot = name.split("/")
                slots.setdefault(int(index), {})[slot] = value
        self._optimiser.load_state_dict({"state": slots, "param_groups": self._optimiser.state_dict()["param_groups"]})

    def _enter(self, *, fresh: bool) -> None:
        """Freeze all but this phase's parameters."""
        phase, settings = self._phase, self.settings
        self._inputs = phase.inputs(self._table)  # (T, D)
        if fresh:
            phase.begin(self._inputs)
        self.course.module.requires_grad_(requires_grad=False)
        self._trained = [*phase.layers, *phase.logits]
        for parameter in self._trained:
            parameter.requires_grad_()
        flat = [parameter for parameter in phase.layers if parameter.ndim == 1]
        groups = [
            ([p for p in phase.layers if p.ndim > 1], settings.learning_rate, settings.weight_decay),
            (flat, settings.learning_rate, 0.0),
            (list(phase.logits), settings.logit_rate, 0.0),
        ]
        self._optimiser = torch.optim.AdamW(
            [{"params": p, "peak": rate, "lr": rate, "weight_decay": decay} for p, rate, decay in groups if p],
            betas=_BETAS,
        )

    @property
    def _phase(self) -> Phase:
        return self.course.phases[self.phase]

    def _batch(self, rng: np.random.Generator) -> Batch:
        labelled = None if self._labelled is None else self._labelled.draw(rng)
        pool = self.data.pool
        anchors = rng.choice(pool, size=min(self.settings.anchors, len(pool)), replace=False)
        return together(labelled, anchors, self._neighbours(anchors))

    def _neighbours(self, anchors: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(A, K) rows; the memory takes the anchors in afterwards."""
        count = min(self.settings.neighbours, len(anchors) - 1)
        if self._corpus is not None:
            return self._corpus[anchors]
        rows = torch.from_numpy(anchors).to(self._device)
        vectors = self._table[rows]
        found = None
        if self.course.terms.source == "memory":
            found = self._memory.nearest(rows, vectors, count)
            self._memory.push(rows, vectors)
        if found is None:  # the batch's own
            similar = (vectors @ vectors.T).fill_diagonal_(-torch.inf)
            found = rows[similar.topk(count, dim=1).indices]
        return found.cpu().numpy()

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        terms, settings = self.course.terms, self.settings
        rows = batch.rows.to(self._device)
        x = self._inputs[rows]  # (R, D)
        anchors, others = batch.anchors, batch.neighbours  # (A,), (A, K)
        frozen = self._table[rows]
        near = (frozen[anchors][:, None] * frozen[others]).sum(dim=-1)  # (A, K)
        weight = terms.neighbour if self._labelled is not None else 1.0
        paths = self._phase.paths(x, generator)
        total = x.new_zeros(())
        for path in paths:
            unit = functional.normalize(path, dim=1)  # (R, d)
            if self._labelled is not None:
                scores = unit[batch.queries] @ unit[batch.documents].T  # (B, C)
                total = total + rank_loss(scores, batch.labels.to(scores), scale=settings.scale)
            if weight:
                short = (unit[anchors][:, None] * unit[others]).sum(dim=-1)
                total = total + weight * neighbour_loss(near, short)
                if terms.pair:
                    own, all_pairs = unit[anchors], frozen[anchors] @ frozen[anchors].T
                    total = total + weight * terms.pair * neighbour_loss(all_pairs, own @ own.T)
        if terms.recovery:
            total = total + terms.recovery * recovery_loss(*self._phase.moved(x, paths))
        return total

    def _all_neighbours(self) -> npt.NDArray[np.int64]:
        """(T, K) the nearest of every row among all that are not zero."""
        table, pool = self.data.table, self.data.pool
        count = min(self.settings.neighbours, len(pool) - 1)
        found = np.zeros((len(table), count), np.int64)
        for start in range(0, len(pool), _ROWS_AT_ONCE):
            places = np.arange(start, min(start + _ROWS_AT_ONCE, len(pool)))
            found[pool[places]] = pool[nearest(table[pool], places, count)]
        return found
