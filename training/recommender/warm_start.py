"""Starting from an earlier model: a finished run of the same catalogue, or a bundle of an earlier one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file

from recsys.catalog import Catalog
from recsys.errors import DataError, VersionMismatchError
from recsys.storage import read_json, sha256_parts

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    from torch import Tensor, nn

    from recsys.datasets.prepared import PreparedData

# Names of tensors with one row per item end so.
_PER_ITEM: Final = ("id_embedding.weight", "item_output.weight")


class Parent(NamedTuple):
    """A model to start from.

    Attributes:
        weights: by name.
        rows: (I,) int64, where each item of the new catalogue stands in the parent's; -1 = it is new.
    """

    weights: dict[str, Tensor]
    rows: npt.NDArray[np.int64]

    @property
    def fingerprint(self) -> str:
        """Of names, values and rows."""
        parts: list[str | bytes] = [self.rows.tobytes()]
        for name, tensor in sorted(self.weights.items()):
            parts += [name, tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()]
        return sha256_parts(parts)


def items_fingerprint(data: PreparedData) -> str:
    """Of the catalogue's item ids."""
    return sha256_parts(data.items["item_id"].to_pylist())


def load_parent(parent: Path, data: PreparedData) -> Parent:
    """The weights of a finished run or of a bundle.

    Args:
        parent: its directory. A bundle names its items, so that the catalogue may have changed since; a run does not.
        data: to be trained on.

    Raises:
        DataError: neither of them is there.
        VersionMismatchError: its codes mean something else, or it is a run on another catalogue.
    """
    path, weights = parent / "manifest.json", parent / "model" / "weights.safetensors"
    if not path.is_file() or not weights.is_file():
        raise DataError("no finished run and no bundle to start from", field="parent", value=str(parent))
    manifest = read_json(path)
    if manifest["tokenizer_version"] != data.tokenizer_version:
        raise VersionMismatchError(
            f"the parent was trained with another tokenizer than {data.tokenizer_version} of the work directory",
            field="tokenizer_version",
            value=manifest["tokenizer_version"],
            remedy="start from a model of the same tokenizer, or without --parent",
        )
    catalog = parent / "catalog"
    if catalog.is_dir():
        rows = Catalog.open(catalog).index.lookup(data.items["item_id"].to_pylist()).astype(np.int64)
    elif manifest.get("items") == items_fingerprint(data):  # absent from runs of earlier versions
        rows = np.arange(data.items.num_rows)
    else:
        raise VersionMismatchError(
            "the run was trained on another catalogue",
            field="parent",
            value=str(parent),
            remedy="publish the run and give its bundle: that one names its items",
        )
    return Parent(load_file(weights), rows)


def warm_start(model: nn.Module, parent: Parent) -> int:
    """Take over the tensors whose names and shapes fit, and of the others the rows of the items that both know.

    Returns:
        How many tensors were taken over, wholly or in part.
    """
    own = model.state_dict()
    taken = 0
    for name, value in parent.weights.items():
        if name not in own:
            continue
        if name.endswith(_PER_ITEM) and own[name].shape[1:] == value.shape[1:]:
            known = torch.from_numpy(parent.rows >= 0)
            rows = torch.from_numpy(parent.rows[parent.rows >= 0])
            own[name][known.to(own[name].device)] = value[rows].to(own[name])
            taken += 1
        elif own[name].shape == value.shape:
            own[name].copy_(value)
            taken += 1
    return taken
