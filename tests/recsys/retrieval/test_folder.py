"""From a work directory's vectors to a bundle's indexes."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from recsys.backends.compressor_onnx import export_compressor
from recsys.bundle import Bundle, Registry, load_indexes, publish_run
from recsys.bundle.compressor import load_compressor
from recsys.datasets.prepared import PreparedData
from recsys.errors import ConfigError, CorruptionError, DataError, InputError, VersionMismatchError, WindfireError
from recsys.models.smec import Compressor, CompressorConfig
from recsys.retrieval.building import write_retrieval
from recsys.retrieval.folder import RETRIEVAL, load_retrieval
from recsys.retrieval.query_encoder import EncoderSpec, QueryEncoder, encoder_of_job
from recsys.retrieval.settings import IndexSettings
from recsys.storage import read_json, write_json_atomically
from recsys.text.encoder import HASHING, HashingEncoder
from training.smec.data import load_data
from training.smec.settings import SmecSettings
from training.smec.trainer import train_smec
from windfire.commands import index

NOW = datetime(2026, 1, 1, tzinfo=UTC)
IDS = [f"item-{n}" for n in range(6)]


def call(*arguments: object) -> Result:
    done = CliRunner().invoke(index.app, [str(argument) for argument in arguments])
    if isinstance(done.exception, WindfireError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture
def work(tiny_work: Path, tmp_path: Path) -> Path:
    """A copy of one's own."""
    shutil.copytree(tiny_work, tmp_path / "work")
    return tmp_path / "work"


def publish(work: Path, run: Path, place: Path) -> Bundle:
    registry = Registry(place)
    publish_run(registry, run=run, work=work, created=NOW)
    return registry.open_current()


def test_a_bundle_gets_the_indexes_of_its_work_directory(work: Path, tiny_run: Path, tmp_path: Path) -> None:
    done = call("build", "--data", work)
    assert "text: built, 48 items with a vector, dimension 6, flat" in done.stdout
    assert "search will answer 501" in done.stdout
    again = call("build", "--data", work)
    assert "collaborative: unchanged" in again.stdout
    bundle = publish(work, tiny_run, tmp_path / "registry")
    retrieval = load_indexes(bundle)
    assert retrieval is not None
    data = PreparedData.load(work)
    similar = retrieval.similar(7, 5, None)
    assert similar is not None
    assert (similar.vectors, similar.found.rows[0]) == ("collaborative", 7)
    unit = data.text / np.linalg.norm(data.text, axis=1, keepdims=True)
    nearest = retrieval.similar(7, 48, None, "text")
    assert nearest is not None
    np.testing.assert_allclose(nearest.found.scores, np.sort(unit @ unit[7])[::-1], atol=1e-6)
    with pytest.raises(DataError, match="no text encoder"):
        retrieval.search("title", 3, None)


def test_a_bundle_without_indexes_stays_loadable(work: Path, tiny_run: Path, tmp_path: Path) -> None:
    bundle = publish(work, tiny_run, tmp_path / "registry")
    assert not bundle.has_indexes
    assert load_indexes(bundle) is None


def test_a_flipped_byte_of_an_index_is_refused_by_the_bundle(work: Path, tiny_run: Path, tmp_path: Path) -> None:
    call("build", "--data", work)
    bundle = publish(work, tiny_run, tmp_path / "registry")
    path = bundle.path / RETRIEVAL / "text" / "index.faiss"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match=r"retrieval/text/index\.faiss differs"):
        Bundle.open(bundle.path)


def test_indexes_over_another_catalogue_or_other_vectors_are_not_published(
    work: Path, tiny_run: Path, tmp_path: Path
) -> None:
    data = PreparedData.load(work)
    ids = data.items["item_id"].to_pylist()
    write_retrieval(work / RETRIEVAL, {"text": data.text + 1}, IndexSettings(), item_ids=ids)
    with pytest.raises(VersionMismatchError, match="other text vectors"):
        publish(work, tiny_run, tmp_path / "registry")
    write_retrieval(work / RETRIEVAL, {"text": data.text}, IndexSettings(), item_ids=[*ids[:-1], "other"])
    with pytest.raises(VersionMismatchError, match="other items"):
        publish(work, tiny_run, tmp_path / "registry")
    assert Registry(tmp_path / "registry").versions() == []


def test_a_build_that_was_killed_is_not_published_and_goes_on(work: Path, tiny_run: Path, tmp_path: Path) -> None:
    call("build", "--data", work)
    (work / RETRIEVAL / "retrieval.json").unlink()
    with pytest.raises(DataError, match="no finished indexes"):
        publish(work, tiny_run, tmp_path / "registry")
    assert "text: unchanged" in call("build", "--data", work).stdout
    assert publish(work, tiny_run, tmp_path / "registry").has_indexes


def test_a_damaged_or_differently_set_index_is_built_again(work: Path, tmp_path: Path) -> None:
    call("build", "--data", work)
    path = work / RETRIEVAL / "text" / "index.faiss"
    path.write_bytes(path.read_bytes()[:-1])
    done = call("build", "--data", work)
    assert "text: built" in done.stdout
    assert "collaborative: unchanged" in done.stdout
    (tmp_path / "other.yaml").write_text("kind: hnsw\n")
    done = call("build", "--data", work, "--config", tmp_path / "other.yaml", "--vectors", "text")
    assert "text: built, 48 items with a vector, dimension 6, hnsw" in done.stdout
    assert [path.name for path in (work / RETRIEVAL).iterdir() if path.is_dir()] == ["text"]


def test_the_reference_settings_are_the_defaults() -> None:
    reference = Path(__file__).resolve().parents[3] / "config" / "retrieval.yaml"
    assert IndexSettings.load(reference) == IndexSettings()


def test_vectors_of_ones_own(work: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "own.npy", np.eye(48))
    done = call("build", "--data", work, "--vectors", "", "--given", tmp_path / "own.npy")
    assert "given: built, 48 items with a vector, dimension 48" in done.stdout
    retrieval = load_retrieval(work / RETRIEVAL)
    similar = retrieval.similar(3, 1, None)
    assert similar is not None
    assert (similar.vectors, similar.found.rows.tolist()) == ("given", [3])


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (["--vectors", "colour"], ConfigError, "no such vectors"),
        (["--vectors", ""], ConfigError, "nothing to build"),
        (["--given", "nowhere.npy"], InputError, "not an array"),
        (["--encoder", "hashing"], VersionMismatchError, "dimension"),
        (["--encoder", "nowhere"], ConfigError, "no sentence-transformers model"),
        (["--encode"], ConfigError, "name the encoder"),
    ],
)
def test_bad_calls_are_named(work: Path, options: list[str], error: type[WindfireError], match: str) -> None:
    write_json_atomically(
        work / "text_embeddings" / "manifest.json",
        {"settings": {"max_tokens": 96, "bfloat16": False, "hashing": True}},
    )
    with pytest.raises(error, match=match):
        call("build", "--data", work, *options)


def test_given_vectors_must_be_as_many_as_the_items(work: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "own.npy", np.eye(47))
    with pytest.raises(InputError, match="48 items need as many"):
        call("build", "--data", work, "--given", tmp_path / "own.npy")


def test_the_encoder_travels_with_the_text_vectors(tmp_path: Path) -> None:
    texts = ["red lacquer", "dry hair", "", "vanilla", "rose", "oil"]
    spec = EncoderSpec.of(HASHING, max_tokens=96, bfloat16=False)
    vectors: Any = {"text": HashingEncoder().encode(texts)}
    write_retrieval(tmp_path / "index", vectors, IndexSettings(), item_ids=IDS, encoder=spec)
    retrieval = load_retrieval(tmp_path / "index")
    assert retrieval.search("Dry  hair!", 1, None).rows.tolist() == [1]
    assert load_retrieval(tmp_path / "index", encoder=False).encoder is None
    path = tmp_path / "index" / "retrieval.json"
    value = read_json(path)
    write_retrieval(tmp_path / "index", {"text": np.ones((6, 3))}, IndexSettings(), item_ids=IDS)
    write_json_atomically(path, value)
    with pytest.raises(VersionMismatchError, match="dimension 256"):
        load_retrieval(tmp_path / "index")
    for blank in ("", " \n", "\ud800 ?"):
        with pytest.raises(InputError, match="nothing in this text"):
            retrieval.search(blank, 1, None)


class OtherFiles:
    """The parts of a model's folder that a copy needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "0").mkdir(parents=True)
        (folder / "modules.json").write_text('[{"type": "x.Pooling", "path": "0"}]')
        (folder / "0" / "config.json").write_text('{"embedding_dimension": 3, "pooling_mode": "mean"}')


def test_a_model_of_ones_own_is_copied_and_checked(tmp_path: Path) -> None:
    model = OtherFiles(tmp_path / "model").folder
    spec = EncoderSpec.of(str(model), max_tokens=96, bfloat16=False)
    write_retrieval(tmp_path / "index", {"text": np.ones((6, 3))}, IndexSettings(), item_ids=IDS, encoder=spec)
    assert read_json(tmp_path / "index" / "retrieval.json")["encoder"]["model"] == "encoder"
    copied = tmp_path / "index" / "encoder" / "0" / "config.json"
    copied.write_text(copied.read_text() + " ")
    with pytest.raises(VersionMismatchError, match="other files"):
        load_retrieval(tmp_path / "index")
    assert load_retrieval(tmp_path / "index", encoder=False).indexes
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    spec = EncoderSpec.of(str(model), max_tokens=96, bfloat16=False)
    with pytest.raises(ConfigError, match="no pickle"):
        write_retrieval(tmp_path / "index", {"text": np.ones((6, 3))}, IndexSettings(), item_ids=IDS, encoder=spec)


def test_the_encoder_of_a_work_directory(tmp_path: Path) -> None:
    assert encoder_of_job(tmp_path, "auto") is None, "who made the vectors is not known"
    with pytest.raises(VersionMismatchError, match="not known which model"):
        encoder_of_job(tmp_path, HASHING)
    place = tmp_path / "text_embeddings" / "manifest.json"
    write_json_atomically(place, {"settings": {"max_tokens": 32, "bfloat16": False, "hashing": True}})
    found = encoder_of_job(tmp_path, "auto")
    assert found is not None
    assert (found.model, found.max_tokens, found.dimension) == (HASHING, 32, 256)
    assert encoder_of_job(tmp_path, "none") is None
    other = {"max_tokens": 32, "bfloat16": False, "hashing": False, "model": "of another"}
    write_json_atomically(place, {"settings": other})
    assert encoder_of_job(tmp_path, "auto") is None
    with pytest.raises(VersionMismatchError, match="another model"):
        encoder_of_job(tmp_path, str(OtherFiles(tmp_path / "model").folder))


def test_folders_that_are_none_and_rows_beyond_the_catalogue(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished indexes"):
        load_retrieval(tmp_path)
    write_retrieval(tmp_path / "index", {"given": np.eye(6)}, IndexSettings(), item_ids=IDS)
    path = tmp_path / "index" / "retrieval.json"
    value = read_json(path)
    write_json_atomically(path, {**value, "items": 5})
    with pytest.raises(DataError, match="items that the catalogue of 5"):
        load_retrieval(tmp_path / "index")
    write_json_atomically(path, {**value, "format": "windfire.retrieval/0"})
    with pytest.raises(DataError, match="another format"):
        load_retrieval(tmp_path / "index")


def test_a_query_does_not_depend_on_what_surrounds_the_words() -> None:
    encoder = QueryEncoder(HashingEncoder())
    np.testing.assert_array_equal(encoder.encode("  dry hair \n"), encoder.encode("dry hair"))


@pytest.fixture(scope="session")
def compressors(tmp_path_factory: pytest.TempPathFactory, tiny_work: Path) -> Path:
    """A run of `windfire train smec`, as short as can be, on the text vectors of 6 dimensions."""
    run = tmp_path_factory.mktemp("smec") / "run"
    chosen = SmecSettings(halvings=1, steps=3, warmup_steps=1, batch=4, anchors=8, neighbours=2, memory=0)
    train_smec(load_data(tiny_work), chosen, run, seed=1)
    return run


def test_a_compressed_index_is_served_by_the_bundles_own_graph(
    work: Path, tiny_run: Path, tmp_path: Path, compressors: Path
) -> None:
    done = call("build", "--data", work, "--compressor", f"text={compressors}", "--width", 3)
    assert "text: built, 48 items with a vector, dimension 3, flat" in done.stdout
    assert "collaborative: built" in done.stdout
    assert (
        "text: unchanged" in call("build", "--data", work, "--compressor", f"text={compressors}", "--width", 3).stdout
    )
    bundle = publish(work, tiny_run, tmp_path / "registry")
    assert f"{RETRIEVAL}/compressor_text.onnx" in bundle.manifest.files
    retrieval = load_indexes(bundle)
    assert retrieval is not None
    data = PreparedData.load(work)
    short = load_compressor(compressors / "model").reduce(data.text, 3)
    similar = retrieval.similar(7, 48, None, "text")
    assert similar is not None
    np.testing.assert_allclose(similar.found.scores, np.sort(short @ short[7])[::-1], atol=1e-5)
    # a new item comes as its encoder made it
    assert (retrieval.dimension("text"), retrieval.dimension("given")) == (6, None)
    assert retrieval.dimension("collaborative") == data.collaborative.shape[1]
    retrieval.put("text", np.array([48]), data.text[7:8] * 3)
    twin = retrieval.similar(48, 2, None, "text")
    assert twin is not None
    assert sorted(twin.found.rows.tolist()) == [7, 48]
    np.testing.assert_allclose(twin.found.scores, 1, atol=1e-5)
    with pytest.raises(InputError, match=r"\(B, 6\)"):
        retrieval.put("text", np.array([49]), short[:1])
    with pytest.raises(InputError, match="zero vector"):
        retrieval.put("text", np.array([49]), np.zeros((1, 6)))
    with pytest.raises(DataError, match="no index over these vectors"):
        retrieval.put("given", np.array([49]), short[:1])


def test_a_searched_text_is_shortened_as_the_items_were(tmp_path: Path) -> None:
    texts = ["red lacquer", "dry hair", "", "vanilla", "rose", "oil"]
    vectors = HashingEncoder().encode(texts)
    model = Compressor(CompressorConfig(256, 1), torch.linalg.qr(torch.randn(256, 256)).Q)
    with torch.no_grad():
        model.stage(0).bias.fill_(0.1)
    (path,) = export_compressor(model, tmp_path)
    spec = EncoderSpec.of(HASHING, max_tokens=96, bfloat16=False)
    write_retrieval(
        tmp_path / "index", {"text": vectors}, IndexSettings(), item_ids=IDS, encoder=spec, compressors={"text": path}
    )
    retrieval = load_retrieval(tmp_path / "index")
    found = retrieval.search("Dry  hair!", 6, None)
    assert found.rows[0] == 1
    assert found.scores[0] == pytest.approx(1, abs=1e-5)
    assert 2 not in found.rows, "the item without text has no vector, whatever the bias"
    short = model.reduce(vectors, 128)
    np.testing.assert_allclose(found.scores, np.sort(np.delete(short @ short[1], 2))[::-1], atol=1e-5)


def test_a_compressor_that_is_left_out_again_leaves_nothing(work: Path, compressors: Path) -> None:
    call("build", "--data", work, "--compressor", f"text={compressors}", "--width", 3)
    assert "text: built, 48 items with a vector, dimension 6" in call("build", "--data", work).stdout
    assert not list((work / RETRIEVAL).glob("*.onnx"))
    assert load_retrieval(work / RETRIEVAL).compressors == {}


def test_damaged_and_foreign_compressors_are_refused(work: Path, compressors: Path) -> None:
    call("build", "--data", work, "--compressor", f"text={compressors}", "--width", 3)
    path = work / RETRIEVAL / "compressor_text.onnx"
    graph = path.read_bytes()
    path.write_bytes(graph[:-1])
    with pytest.raises(CorruptionError, match=r"compressor_text\.onnx"):
        load_retrieval(work / RETRIEVAL)
    path.write_bytes(graph)
    manifest = work / RETRIEVAL / "retrieval.json"
    value = read_json(manifest)
    write_json_atomically(manifest, {**value, "compressors": {"text": {**value["compressors"]["text"], "width": 2}}})
    with pytest.raises(VersionMismatchError, match="vectors of 2 dimensions"):
        load_retrieval(work / RETRIEVAL)
    changed = {**value["compressors"]["text"], "dimension": 7}
    write_json_atomically(manifest, {**value, "compressors": {"text": changed}})
    with pytest.raises(VersionMismatchError, match="3 dimensions from 6"):
        load_retrieval(work / RETRIEVAL)
    (compressors.parent / "other" / "model").mkdir(parents=True, exist_ok=True)
    (compressors.parent / "other" / "model" / "compressor_3.onnx").write_bytes(b"no graph")
    write_json_atomically(manifest, value)
    for options, error, match in (
        (["text=nowhere"], DataError, "no compressor of this width"),
        ([f"text={compressors.parent / 'other'}"], CorruptionError, "cannot be read by ONNX Runtime"),
        ([f"collaborative={compressors}"], VersionMismatchError, "trained on vectors of 6"),
        ([f"given={compressors}"], ConfigError, "no index is built over"),
        (["colour=x"], ConfigError, "NAME=RUN"),
        ([f"text={compressors}", f"text={compressors}"], ConfigError, "NAME=RUN"),
    ):
        wanted = [part for value in options for part in ("--compressor", value)]
        with pytest.raises(error, match=match):
            call("build", "--data", work, "--width", 3, *wanted)
    assert load_retrieval(work / RETRIEVAL).compressors, "a refused call changes nothing"


def test_candidates_are_near_what_the_newest_items_have_in_common(work: Path) -> None:
    call("build", "--data", work)
    retrieval = load_retrieval(work / RETRIEVAL)
    data = PreparedData.load(work)
    unit = data.collaborative / np.linalg.norm(data.collaborative, axis=1, keepdims=True)
    history = [3, -1, 9, 12]
    asked = unit[12] + 0.8 * unit[9] + 0.64 * unit[3]
    expected = unit @ asked / np.linalg.norm(asked)
    mask = np.ones(48, dtype=bool)
    mask[history] = False  # -1 is the last row: hidden, too
    found = retrieval.candidates(history, 5, mask)
    assert found is not None
    assert found.vectors == "collaborative"
    assert not set(found.found.rows.tolist()) & {3, 9, 12, 47}
    np.testing.assert_allclose(found.found.scores, np.sort(expected[mask])[::-1][:5], atol=1e-6)
    assert retrieval.candidates([], 5, None) is None
    assert retrieval.candidates([-1, 400], 5, None) is None
    assert retrieval.candidates(history, 5, None, "given") is None
