"""SASRec (Kang and McAuley, 2018) trained with the full-softmax cross-entropy at every position.

A causal transformer reads the history; the last hidden state scores every item by its (tied) embedding.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name
from torch import Tensor, nn

from recsys.baselines.scorer import validation_ndcg
from recsys.errors import ConfigError, DataError
from recsys.processor import has_bfloat16

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from recsys.datasets.prepared import PreparedData

_INIT_STD = 0.02
_SCORE_BATCH = 512


@dataclass(frozen=True, slots=True)
class SasRecSettings:
    """Settings of `SasRec`.

    Attributes:
        d_model: width of embeddings and states.
        layers: transformer blocks.
        heads: attention heads.
        dropout: on embeddings, attention and residual branches.
        max_history: newest items that are read.
        learning_rate: of AdamW after the warm-up; from there it falls in a line to 0 at the last step.
        weight_decay: of AdamW.
        warmup_steps: steps of linear warm-up.
        batch_positions: targets per step, about.
        steps: most optimiser steps.
        evaluate_every: steps between validations.
        evaluate_users: validation users, at most.
        patience: validations without a better NDCG@10 before the end.
        bf16: train under bfloat16 autocast; None = where the processor multiplies in it.
    """

    d_model: int = 64
    layers: int = 2
    heads: int = 2
    dropout: float = 0.3
    max_history: int = 50
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup_steps: int = 100
    batch_positions: int = 1024
    steps: int = 3200
    evaluate_every: int = 400
    evaluate_users: int = 8000
    patience: int = 3
    bf16: bool | None = None

    def __post_init__(self) -> None:
        if self.d_model % self.heads:
            raise ConfigError("must be a multiple of heads", field="d_model", value=self.d_model)
        if not 0 <= self.dropout < 1:
            raise ConfigError("must lie in [0, 1)", field="dropout", value=self.dropout)
        counts = ("layers", "heads", "max_history", "batch_positions", "steps", "evaluate_every", "patience")
        for name, value in asdict(self).items():
            if name in counts and value < 1:
                raise ConfigError("must be at least 1", field=name, value=value)


class _Block(nn.Module):
    def __init__(self, settings: SasRecSettings) -> None:
        super().__init__()
        width = settings.d_model
        self.heads, self.rate = settings.heads, settings.dropout
        self.norm_attention, self.norm_ffn = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, states: Tensor) -> Tensor:
        """(B, n, H) -> (B, n, H); a position sees itself and what stands before it."""
        batch, length, width = states.shape
        qkv = self.qkv(self.norm_attention(states)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, n, H / heads)
        rate = self.rate if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=rate)
        states = states + self.dropout(self.out(mixed.transpose(1, 2).reshape(batch, length, width)))
        return states + self.dropout(self.ffn(self.norm_ffn(states)))  # type: ignore[no-any-return]


class _Network(nn.Module):
    def __init__(self, num_items: int, settings: SasRecSettings) -> None:
        super().__init__()
        self.item = nn.Embedding(num_items, settings.d_model)
        self.position = nn.Embedding(settings.max_history, settings.d_model)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(_Block(settings) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.d_model)
        for module in self.modules():
            if isinstance(module, nn.Embedding | nn.Linear):
                nn.init.normal_(module.weight, std=_INIT_STD)

    def forward(self, items: Tensor) -> Tensor:
        """(B, n) int64, padded on the right with anything -> (B, n, H); padding changes no state before it."""
        states = self.item(items) + self.position.weight[: items.shape[1]]
        states = self.dropout(states)
        for block in self.blocks:
            states = block(states)
        return self.norm(states)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class SasRec:
    """A fitted SASRec.

    Attributes:
        network: in evaluation mode.
        num_items: I.
        settings: as fitted.
        steps: optimiser steps made.
        valid_ndcg: best validation NDCG@10, history masked.
    """

    network: nn.Module
    num_items: int
    settings: SasRecSettings
    steps: int = 0
    valid_ndcg: float = 0.0

    @classmethod
    def fit(cls, data: PreparedData, settings: SasRecSettings | None = None, *, seed: int) -> SasRec:
        """Train on the training part, keep the weights that did best on validation.

        Args:
            data: training and validation parts are read; without validation targets the last weights are kept.
            settings: None takes the defaults.
            seed: of initial weights, dropout and batches. Torch's global generator is left as it was.

        Raises:
            DataError: no user has two training events.
        """
        settings = settings or SasRecSettings()
        windows = _windows(data, settings.max_history)
        if not windows:
            raise DataError("SASRec needs a user with two training events and found none", field="users", value=0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _Network(len(data.train_counts), settings)
            return _train(network, data, windows, settings, np.random.default_rng(seed))

    def score(self, histories: Sequence[npt.NDArray[np.integer]]) -> npt.NDArray[np.float32]:
        """Histories -> (B, I); an empty history scores every item 0. See `recsys.baselines.scorer.Scorer`."""
        scores = np.zeros((len(histories), self.num_items), dtype=np.float32)
        spoken = [row for row, history in enumerate(histories) if len(history)]
        with torch.inference_mode():
            for begin in range(0, len(spoken), _SCORE_BATCH):
                rows = spoken[begin : begin + _SCORE_BATCH]
                newest = [histories[row][-self.settings.max_history :] for row in rows]
                items, lengths = _pad(newest)
                states = self.network(torch.from_numpy(items))
                last = states[torch.arange(len(rows)), torch.from_numpy(lengths) - 1]  # (b, H)
                scores[rows] = (last @ self.network.get_parameter("item.weight").T).numpy()
        return scores


def _train(
    network: _Network,
    data: PreparedData,
    windows: list[npt.NDArray[np.int32]],
    settings: SasRecSettings,
    rng: np.random.Generator,
) -> SasRec:
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    best, weights, stale, step = -1.0, copy.deepcopy(network.state_dict()), 0, 0
    batches = _batches(windows, settings.batch_positions, rng)
    while step < settings.steps and stale < settings.patience:
        _step(network, optimiser, next(batches), settings, step)
        step += 1
        if step % settings.evaluate_every == 0 or step == settings.steps:
            network.eval()
            current = SasRec(network, len(data.train_counts), settings)
            value = validation_ndcg(current, data, users=settings.evaluate_users)
            stale += 1
            if value > best or len(data.sequences.targets("valid")[2]) == 0:
                best, weights, stale = value, copy.deepcopy(network.state_dict()), 0
    network.load_state_dict(weights)
    network.eval()
    return SasRec(network, len(data.train_counts), settings, steps=step, valid_ndcg=max(best, 0.0))


def _step(
    network: _Network,
    optimiser: torch.optim.Optimizer,
    batch: list[npt.NDArray[np.int32]],
    settings: SasRecSettings,
    step: int,
) -> None:
    warm = min(1.0, (step + 1) / max(settings.warmup_steps, 1))
    for group in optimiser.param_groups:
        group["lr"] = settings.learning_rate * min(warm, 1 - step / settings.steps)
    network.train()
    inputs, lengths = _pad([window[:-1] for window in batch])
    real = torch.from_numpy(np.arange(inputs.shape[1]) < lengths[:, None])  # (B, n)
    targets = torch.from_numpy(np.concatenate([window[1:] for window in batch]).astype(np.int64))
    bfloat16 = has_bfloat16() if settings.bf16 is None else settings.bf16
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        logits = network(torch.from_numpy(inputs))[real] @ network.item.weight.T  # (targets, I)
    loss = F.cross_entropy(logits, targets)  # bfloat16 logits: a quarter of the time, the same quality
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()


def _windows(data: PreparedData, max_history: int) -> list[npt.NDArray[np.int32]]:
    """Cut the training parts, from their newest end, into at most `max_history` inputs and one event more.

    Every event but a user's first is the target of one window.
    """
    windows: list[npt.NDArray[np.int32]] = []
    for user in range(data.sequences.users):
        items = data.sequences.training(user)
        windows.extend(items[max(end - max_history, 0) : end + 1] for end in range(len(items) - 1, 0, -max_history))
    return windows


def _batches(
    windows: list[npt.NDArray[np.int32]], positions: int, rng: np.random.Generator
) -> Iterator[list[npt.NDArray[np.int32]]]:
    """Shuffled windows for ever, each batch with about `positions` targets.

    Windows of about the same length stand together, so that little is padded; the lengths are jittered, so that the
    same windows do not meet in every epoch.
    """
    targets = np.asarray([len(window) - 1 for window in windows])
    while True:
        order = np.argsort(targets * rng.uniform(0.7, 1.3, size=len(windows)))
        number = (np.cumsum(targets[order]) - 1) // positions
        batches = np.split(order, np.flatnonzero(np.diff(number)) + 1)
        for batch in rng.permutation(len(batches)):
            yield [windows[row] for row in batches[batch]]


def _pad(rows: Sequence[npt.NDArray[np.integer]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(B, n) items padded on the right with 0, and (B,) lengths."""
    lengths = np.asarray([len(row) for row in rows], dtype=np.int64)
    items = np.zeros((len(rows), int(lengths.max())), dtype=np.int64)
    items[np.arange(items.shape[1]) < lengths[:, None]] = np.concatenate(rows)
    return items, lengths
