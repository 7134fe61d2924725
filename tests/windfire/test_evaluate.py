from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from recsys.bundle import Registry, load_decoder
from recsys.datasets.prepared import PreparedData
from recsys.decoding.eligibility import Eligibility
from recsys.errors import DataError, VersionMismatchError
from recsys.storage import read_json, write_json_atomically
from windfire.commands.evaluate import app


def call(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    return done.stdout


def test_figures_equal_a_count_by_hand(tiny_registry: Registry, tiny_work: Path) -> None:
    report = json.loads(call("--registry", tiny_registry.root, "--data", tiny_work, "--json"))
    values = {figure["name"]: figure["value"] for figure in report["figures"]}
    _, histories, targets = PreparedData.load(tiny_work).sequences.targets("test")
    bundle = tiny_registry.open_current()
    eligibility = Eligibility(excluded=histories)
    ranked = load_decoder(bundle).decode(histories, k=10, beam=50, eligibility=eligibility).ranked
    hits = [target in answer.items for answer, target in zip(ranked, targets, strict=True)]
    assert values["evaluate.masked.recall@10"] == pytest.approx(np.mean(hits))
    assert values["evaluate.masked.invalid@50"] == 0
    assert report["settings"]["bundle"] == tiny_registry.current()
    assert {figure["n"] for figure in report["figures"] if figure["name"].endswith("ndcg@10")} == {30}


def test_the_table_shows_both_views(tiny_registry: Registry, tiny_work: Path) -> None:
    shown = call("--registry", tiny_registry.root, "--data", tiny_work, "--part", "valid")
    assert "unmasked" in shown
    assert "ndcg@10" in shown


def test_foreign_data_are_refused(tiny_registry: Registry, tiny_work: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(tiny_work, work)
    name = work / "semantic_ids" / "tokenizer.json"
    write_json_atomically(name, read_json(name) | {"tokenizer_version": "tok-2"})
    with pytest.raises(VersionMismatchError, match="tok-1"):
        call("--registry", tiny_registry.root, "--data", work)


def test_a_work_directory_with_other_items_is_refused(tiny_registry: Registry, tiny_work: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(tiny_work, work)
    path = next((work / "items" / "data").glob("*.parquet"))
    items = pq.read_table(path)
    shifted = [f"a-{item}" for item in items["item_id"].to_pylist()]
    at = items.schema.get_field_index("item_id")
    pq.write_table(items.set_column(at, items.schema.field(at), [shifted]), path)
    with pytest.raises(VersionMismatchError, match="another catalogue"):
        call("--registry", tiny_registry.root, "--data", work)


def test_a_split_without_test_events_says_so(tiny_registry: Registry, tiny_work: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(tiny_work, work)
    path = work / "splits" / "data" / "part-0.parquet"
    splits = pq.read_table(path)
    none = np.full(splits.num_rows, -1, dtype=np.int32)
    pq.write_table(splits.drop(["test_index"]).append_column("test_index", [none]), path)
    with pytest.raises(DataError, match="--part valid"):
        call("--registry", tiny_registry.root, "--data", work)


def test_two_engines_are_compared_item_by_item(tiny_registry: Registry, tiny_work: Path) -> None:
    folders = ("--registry", tiny_registry.root, "--data", tiny_work)
    report = json.loads(call(*folders, "--engine", "onnx_int8", "--against", "torch", "--json"))
    values = {figure["name"]: figure["value"] for figure in report["figures"]}
    _, histories, _ = PreparedData.load(tiny_work).sequences.targets("test")
    bundle = tiny_registry.open_current()
    lists = [
        load_decoder(bundle, engine=engine).decode(histories, k=20, beam=50, eligibility=Eligibility()).ranked
        for engine in ("onnx_int8", "torch")
    ]
    alike = [np.isin(one.items, other.items).mean() for one, other in zip(*lists, strict=True)]
    assert values["evaluate.unmasked.shared@20"] == pytest.approx(np.mean(alike))
