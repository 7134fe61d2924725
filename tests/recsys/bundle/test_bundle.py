from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from recsys.backends import choose_backbone
from recsys.bundle import Bundle, Registry, load_decoder, publish_run
from recsys.bundle.manifest import MANIFEST, SEAL
from recsys.datasets.prepared import PreparedData
from recsys.decoding.building import build_decoder
from recsys.decoding.eligibility import Eligibility
from recsys.errors import ConfigError, CorruptionError, DataError, VersionMismatchError, WindfireError
from recsys.models import ItemFeatures, RecommenderConfig, build_model
from recsys.storage import read_json, write_json_atomically

LATER = datetime(2026, 2, 1, tzinfo=UTC)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1
    path.write_bytes(data)


def test_a_bundle_holds_what_the_jobs_made(tiny_registry: Registry, tiny_work: Path) -> None:
    bundle = tiny_registry.open_current()
    data = PreparedData.load(tiny_work)
    for name in ("codes", "text", "collaborative", "train_counts"):
        np.testing.assert_array_equal(getattr(bundle, name), getattr(data, name))
        assert not getattr(bundle, name).flags.writeable
    assert bundle.codebook_sizes == data.codebook_sizes
    assert bundle.items.equals(data.items)
    assert bundle.item_ids.lookup(["item-07", "nobody"]).tolist() == [7, -1]
    np.testing.assert_array_equal(bundle.item_to_item.of(47)[0], [0, 1, 2])
    np.testing.assert_allclose(bundle.item_to_item.of(47)[1], [1, 1 / 2, 1 / 3], rtol=1e-6)
    np.testing.assert_array_equal(bundle.trie.item_node.shape, (48, 3))


def test_popularity_falls_and_ties_go_by_index(tiny_registry: Registry) -> None:
    bundle = tiny_registry.open_current()
    assert bundle.popularity["home"].tolist() == list(range(9, -1, -1))
    order = bundle.popularity[""]
    keys = list(zip(-bundle.train_counts[order], order, strict=True))
    assert keys == sorted(keys)
    assert bundle.popular("unheard of") is bundle.popular(None)
    assert bundle.popular("home") is bundle.popularity["home"]


def test_the_manifest_says_where_the_bundle_comes_from(tiny_registry: Registry, tiny_work: Path) -> None:
    manifest = tiny_registry.open_current().manifest
    counts = PreparedData.load(tiny_work).train_counts
    assert manifest.format == "windfire.bundle/1"
    assert manifest.version == f"20260101T000000.000000Z-{manifest.model_version}"
    assert manifest.catalog_version == f"{manifest.version}.0"
    assert (manifest.tokenizer_version, manifest.items) == ("tok-1", 48)
    assert manifest.training.events == counts.sum()
    assert (manifest.training.first_time, manifest.training.last_time) == (0, 8)
    assert manifest.training.offset == 300
    assert manifest.metrics == {"valid.ndcg@10": 0.1}
    assert manifest.config["seed"] == 7
    assert manifest.code_version


def test_nothing_but_the_declared_formats(tiny_registry: Registry) -> None:
    bundle = tiny_registry.open_current()
    found = {path.suffix for path in bundle.path.rglob("*") if path.is_file()}
    assert found == {".json", ".npy", ".parquet", ".safetensors", ".sha256"}


@pytest.mark.parametrize("place", [0, 77, -1], ids=["first", "inside", "last"])
def test_one_flipped_byte_in_any_file_is_refused_by_name(tiny_registry: Registry, place: int) -> None:
    path = tiny_registry.path(tiny_registry.current() or "")
    names = [*Bundle.open(path).manifest.files, MANIFEST]
    assert len(names) > 20
    for name in names:
        flip(path / name, place)
        with pytest.raises(CorruptionError, match=Path(name).name) as raised:
            Bundle.open(path)
        assert raised.value.value == str(path / name)
        flip(path / name, place)
    flip(path / SEAL, place)
    with pytest.raises(CorruptionError, match=SEAL):
        Bundle.open(path)
    flip(path / SEAL, place)
    assert Bundle.open(path).manifest.items == 48


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", ["codes.npy", "model/weights.safetensors", "items.parquet"])
def test_a_cut_or_missing_file_is_refused_by_name(tiny_registry: Registry, name: str, verify: bool) -> None:
    path = tiny_registry.path(tiny_registry.current() or "")
    whole = (path / name).read_bytes()
    (path / name).write_bytes(whole[:-1])
    with pytest.raises(CorruptionError, match=name):
        Bundle.open(path, verify=verify)
    (path / name).unlink()
    with pytest.raises(CorruptionError, match=name):
        Bundle.open(path, verify=verify)


def test_a_host_hashes_once_and_again_after_a_change(tiny_registry: Registry, tmp_path: Path) -> None:
    path, markers = tiny_registry.path(tiny_registry.current() or ""), tmp_path / "markers"
    Bundle.open(path, markers=markers)
    assert len(list(markers.iterdir())) == 1
    Bundle.open(path, markers=markers)
    assert len(list(markers.iterdir())) == 1
    flip(path / "codes.npy", -1)
    with pytest.raises(CorruptionError, match=r"codes\.npy"):
        Bundle.open(path, markers=markers)
    assert len(list(markers.iterdir())) == 1


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no bundle here"):
        Bundle.open(tmp_path)


def test_the_decoder_of_a_bundle_answers(tiny_registry: Registry) -> None:
    bundle = tiny_registry.open_current()
    decoder = load_decoder(bundle)
    histories = [np.array([1, 2, 3]), np.array([], dtype=np.int64)]
    answer = decoder.decode(histories, k=10, beam=48, eligibility=Eligibility(excluded=histories))
    assert decoder.name == "nezha"
    assert [len(ranked.items) for ranked in answer.ranked] == [10, 10]
    assert not set(answer.ranked[0].items.tolist()) & {1, 2, 3}


@pytest.mark.parametrize("decoder", ["nezha", "beam"])
def test_a_bundle_with_a_hugging_face_backbone_answers(
    tiny_registry: Registry, tiny_work: Path, tiny_run: Path, tmp_path: Path, decoder: str
) -> None:
    llama = {"backbone": "huggingface", "backbone_config": {"model_type": "llama"}}
    changed = {"shape": "token", "item_rows": False, **llama}
    run = edited(tiny_run, tmp_path / "run", set_json("model/config.json", **changed))
    data = PreparedData.load(tiny_work)
    model = build_model(
        RecommenderConfig.from_dict(read_json(run / "model" / "config.json")),
        ItemFeatures(data.codes, data.text, data.collaborative, data.train_counts),
        choose_backbone,
    ).eval()
    save_file(model.state_dict(), run / "model" / "weights.safetensors")
    publish_run(tiny_registry, run=run, work=tiny_work, created=LATER)
    bundle = tiny_registry.open_current()
    question: dict[str, Any] = {"k": 48, "beam": 48, "eligibility": Eligibility(shared=None, excluded=None)}
    histories = [np.array([1, 2, 3]), np.array([], dtype=np.int64)]
    served = load_decoder(bundle, decoder).decode(histories, **question)
    direct = build_decoder(model, bundle.trie, name=decoder, prior=data.train_counts).decode(histories, **question)
    for one, other in zip(served.ranked, direct.ranked, strict=True):
        np.testing.assert_array_equal(one.items, other.items)
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5)


def test_a_decoder_that_the_shape_does_not_have(tiny_registry: Registry) -> None:
    with pytest.raises(ConfigError, match="no such decoder"):
        load_decoder(tiny_registry.open_current(), "oracle")


def edited(source: Path, target: Path, edit: Callable[[Path], None]) -> Path:
    shutil.copytree(source, target)
    edit(target)
    return target


def set_json(name: str, **values: Any) -> Callable[[Path], None]:
    return lambda folder: write_json_atomically(folder / name, read_json(folder / name) | values)


def spoil_weights(folder: Path) -> None:
    weights = load_file(folder / "model" / "weights.safetensors")
    weights["trunk.start"][0] = float("nan")
    save_file(weights, folder / "model" / "weights.safetensors")


@pytest.mark.parametrize(
    ("edit", "error", "field"),
    [
        (set_json("manifest.json", tokenizer_version="tok-2"), VersionMismatchError, "tokenizer_version"),
        (set_json("manifest.json", format="windfire.run/0"), DataError, "format"),
        (set_json("model/config.json", num_items=47), VersionMismatchError, "codebook_sizes"),
        (set_json("model/config.json", codebook_sizes=[4, 4, 4]), VersionMismatchError, "codebook_sizes"),
        (set_json("model/config.json", text_dim=5), VersionMismatchError, "text_dim"),
        (set_json("model/config.json", layers=2), DataError, "weights"),
        (lambda run: (run / "model" / "weights.safetensors").write_bytes(b"junk"), CorruptionError, "file"),
        (lambda run: (run / "model" / "weights.safetensors").unlink(), DataError, "file"),
        (lambda run: (run / "manifest.json").write_text("{"), DataError, "run"),
        (spoil_weights, DataError, "tensor"),
    ],
    ids=["tokenizer", "format", "items", "codebooks", "text", "layers", "junk", "missing", "not json", "nan"],
)
def test_a_run_that_does_not_fit_is_refused(
    tiny_registry: Registry,
    tiny_work: Path,
    tiny_run: Path,
    tmp_path: Path,
    edit: Callable[[Path], None],
    error: type[WindfireError],
    field: str,
) -> None:
    served = tiny_registry.current()
    run = edited(tiny_run, tmp_path / "run", edit)
    with pytest.raises(error) as raised:
        publish_run(tiny_registry, run=run, work=tiny_work, created=LATER)
    assert raised.value.field == field
    assert tiny_registry.current() == served
    assert tiny_registry.versions() == [served]


def test_publishing_the_same_run_again_changes_nothing(
    tiny_registry: Registry, tiny_work: Path, tiny_run: Path
) -> None:
    served = tiny_registry.current()
    assert publish_run(tiny_registry, run=tiny_run, work=tiny_work, created=LATER).version == served
    assert tiny_registry.versions() == [served]


def test_a_foreign_tokenizer_in_a_bundle_is_refused(tiny_registry: Registry) -> None:
    bundle = tiny_registry.open_current()
    name = "tokenizer/tokenizer.json"
    set_json(name, tokenizer_version="tok-9")(bundle.path)
    with pytest.raises(VersionMismatchError, match="tok-1"):
        Bundle.open(bundle.path, verify=False)
