"""Checkpoints without pickle: tensors in safetensors, the rest in its metadata, replaced atomically."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save

from recsys.errors import DataError
from recsys.storage import write_bytes_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor, nn


@dataclass(slots=True)
class Progress:
    """Where a run stands; with the tensors it is all that a bit-exact resume needs.

    Attributes:
        step: optimiser steps done.
        best: best validation NDCG@10 so far.
        best_step: when that was.
        stale: evaluations since then.
        seconds: wall time used by earlier processes.
        cpu_seconds: user and system time used by earlier processes.
        stopped: whether early stopping has ended the run.
    """

    step: int = 0
    best: float = -1.0
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    stopped: bool = False


class RandomState(NamedTuple):
    """Where one process stands in its random numbers.

    Attributes:
        dropout: of torch's own CPU generator.
        teacher: of the generator of the teacher's draws.
    """

    dropout: Tensor
    teacher: Tensor

    @classmethod
    def of(cls, generator: torch.Generator) -> RandomState:
        """Of this process; `generator` is the teacher's."""
        return cls(torch.get_rng_state(), generator.get_state())


def save_checkpoint(
    path: Path,
    *,
    fingerprint: str,
    progress: Progress,
    model: nn.Module,
    average: dict[str, Tensor],
    best: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    random: Sequence[RandomState],
) -> None:
    """Write everything that the next step depends on; `random` by rank."""
    tensors = state_tensors(model, average, best, optimiser)
    for rank, state in enumerate(random):
        tensors[_of_rank("rng/torch", rank)] = state.dropout
        tensors[_of_rank("rng/teacher", rank)] = state.teacher
    metadata = {"fingerprint": fingerprint, "progress": json.dumps(asdict(progress))}
    owned = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    write_bytes_atomically(path, save(owned, metadata=metadata))


def load_checkpoint(
    path: Path,
    *,
    fingerprint: str,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
    rank: int = 0,
) -> tuple[Progress, dict[str, Tensor], dict[str, Tensor]]:
    """Restore a run on the model's device.

    A process that the interrupted run did not have goes on with the random numbers it has.

    Returns:
        progress, the averaged weights, the best weights.

    Raises:
        DataError: the checkpoint belongs to other data, settings or another parent.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        if metadata["fingerprint"] != fingerprint:
            raise DataError(
                "the checkpoint belongs to other data, settings, another seed or another parent",
                field="checkpoint",
                value=str(path),
                remedy="choose another --out, or remove this folder to start again",
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    average, best = load_state_tensors(tensors, model, optimiser)
    if _of_rank("rng/torch", rank) in tensors:
        torch.set_rng_state(tensors[_of_rank("rng/torch", rank)])
        generator.set_state(tensors[_of_rank("rng/teacher", rank)])
    return Progress(**json.loads(metadata["progress"])), average, best


def state_tensors(
    model: nn.Module, average: dict[str, Tensor], best: dict[str, Tensor], optimiser: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Weights and the optimiser's state under one name each; what `load_state_tensors` takes."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"average/{name}": value for name, value in average.items()}
    tensors |= {f"best/{name}": value for name, value in best.items()}
    for index, slots in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{index}/{slot}": value for slot, value in slots.items()}
    return tensors


def load_state_tensors(
    tensors: dict[str, Tensor], model: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Put a state back.

    Returns:
        The averaged and the best weights, on the model's device.
    """
    model.load_state_dict(_below(tensors, "model"))
    state: dict[int, dict[str, Any]] = {}
    for name, value in _below(tensors, "optimiser").items():
        index, slot = name.split("/")
        state.setdefault(int(index), {})[slot] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    device = next(model.parameters()).device
    average, best = (
        {name: value.to(device) for name, value in _below(tensors, folder).items()} for folder in ("average", "best")
    )
    return average, best


def _of_rank(name: str, rank: int) -> str:
    return f"{name}/{rank}" if rank else name


def _below(tensors: dict[str, Tensor], folder: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{folder}/"): value for name, value in tensors.items() if name.startswith(f"{folder}/")}
