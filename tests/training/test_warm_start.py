from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from recsys.bundle import Registry
from recsys.datasets.prepared import PreparedData
from recsys.errors import DataError, VersionMismatchError
from training.recommender.settings import TrainSettings
from training.recommender.trainer import Trainer, train
from training.recommender.warm_start import Parent, load_parent

if TYPE_CHECKING:
    from pathlib import Path

ITEM_TABLE = "trunk.input.id_embedding.weight"
ITEM_ROWS = "head.item_output.weight"


def settings(**model: Any) -> TrainSettings:
    return TrainSettings.parse(
        {
            "model": {"d_model": 32, "layers": 1, "heads": 2, "max_history": 8, **model},
            "teacher": {"kind": "none"},
            "steps": 20,
            "batch_tokens": 256,
            "evaluate_every": 10,
            "checkpoint_every": 10,
            "bf16": False,
            "threads": 1,
        }
    )


def trained(data: PreparedData, out: Path) -> Parent:
    train(data, settings(), out, seed=1)
    return load_parent(out, data)


def with_items(data: PreparedData, items: pa.Table, codes: np.ndarray[Any, Any]) -> PreparedData:
    count = items.num_rows
    return replace(
        data,
        items=items,
        codes=codes,
        text=np.zeros((count, data.text.shape[1]), np.float32),
        collaborative=np.zeros((count, data.collaborative.shape[1]), np.float32),
        train_counts=np.ones(count, np.int64),
    )


def grown(data: PreparedData) -> PreparedData:
    """A day later: an item before all others, one behind, and the second one is gone."""
    row = data.items.slice(0, 1).to_pylist()[0]
    first, behind = ({**row, "item_id": name} for name in ("!", "~"))
    kept = [one for place, one in enumerate(data.items.to_pylist()) if place != 1]
    items = pa.Table.from_pylist([first, *kept, behind], schema=data.items.schema)
    codes = np.concatenate([data.codes[:1], np.delete(data.codes, 1, axis=0), data.codes[:1]])
    return with_items(data, items, codes)


def test_another_parent_is_another_run(tiny_data: PreparedData, tmp_path: Path) -> None:
    parent = trained(tiny_data, tmp_path / "run")
    with pytest.raises(DataError, match="checkpoint"):
        train(tiny_data, settings(), tmp_path / "run", seed=1, parent=parent)
    first = train(tiny_data, settings(), tmp_path / "child", seed=1, parent=parent)
    assert train(tiny_data, settings(), tmp_path / "child", seed=1, parent=parent) == first


def test_a_run_that_gets_worse_ends_as_its_parent(tiny_data: PreparedData, tmp_path: Path) -> None:
    train(tiny_data, settings().model_copy(update={"steps": 200}), tmp_path / "run", seed=1)
    parent = load_parent(tmp_path / "run", tiny_data)
    ruinous = settings().model_copy(update={"learning_rate": 1.0})
    manifest = train(tiny_data, ruinous, tmp_path / "child", seed=1, parent=parent)
    kept = load_file(tmp_path / "child" / "model" / "weights.safetensors")
    assert manifest["best_step"] == 0
    assert all(torch.equal(kept[name], parent.weights[name]) for name in parent.weights)


def test_the_parents_weights_are_taken_over(tiny_data: PreparedData, tmp_path: Path) -> None:
    parent = trained(tiny_data, tmp_path / "run")
    state = Trainer(tiny_data, settings(), tmp_path / "child", seed=2, parent=parent).model.state_dict()
    assert all(torch.equal(state[name], parent.weights[name]) for name in parent.weights)


def test_a_bundles_items_are_matched_by_their_ids(
    tiny_work: Path, tiny_run: Path, tiny_registry: Registry, tmp_path: Path
) -> None:
    data = PreparedData.load(tiny_work)
    later = grown(data)
    parent = load_parent(tiny_registry.path(str(tiny_registry.current())), later)
    weights = load_file(tiny_run / "model" / "weights.safetensors")
    shape = {"d_model": 16, "max_history": 10}
    fresh = Trainer(later, settings(**shape), tmp_path / "fresh", seed=2).model.state_dict()
    warm = Trainer(later, settings(**shape), tmp_path / "warm", seed=2, parent=parent).model.state_dict()
    for name in (ITEM_TABLE, ITEM_ROWS):
        old, table = weights[name], warm[name]
        torch.testing.assert_close(table[1], old[0], rtol=0, atol=0)
        torch.testing.assert_close(table[2:-1], old[2:], rtol=0, atol=0)
        torch.testing.assert_close(table[[0, -1]], fresh[name][[0, -1]], rtol=0, atol=0)
    others = [name for name in warm if name not in (ITEM_TABLE, ITEM_ROWS)]
    assert all(torch.equal(warm[name], parent.weights[name]) for name in others)


def test_a_run_on_another_catalogue_is_refused(tiny_data: PreparedData, tmp_path: Path) -> None:
    train(tiny_data, settings(), tmp_path / "run", seed=1)
    with pytest.raises(VersionMismatchError, match="another catalogue") as caught:
        load_parent(tmp_path / "run", grown(tiny_data))
    assert "publish" in str(caught.value.remedy)


def test_another_tokenizer_and_an_empty_folder_are_refused(tiny_data: PreparedData, tmp_path: Path) -> None:
    train(tiny_data, settings(), tmp_path / "run", seed=1)
    with pytest.raises(VersionMismatchError, match="another tokenizer"):
        load_parent(tmp_path / "run", replace(tiny_data, tokenizer_version="other"))
    with pytest.raises(DataError, match="no finished run"):
        load_parent(tmp_path, tiny_data)
