"""From a run to a fusion in it, to a bundle, to a decoder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from recsys.baselines.neighbours import fit_neighbours
from recsys.bundle import Bundle, Registry, load_decoder, publish_run
from recsys.bundle.fusion import load_fusion, save_fusion
from recsys.bundle.loading import load_model, load_second
from recsys.bundle.writer import model_version_of
from recsys.datasets.prepared import PreparedData
from recsys.decoding.building import build_decoder
from recsys.decoding.eligibility import Eligibility
from recsys.decoding.fused import Second
from recsys.decoding.trie import SidTrie
from recsys.errors import ConfigError, CorruptionError, DataError, VersionMismatchError, WindfireError
from recsys.evaluation.answers import answer_by_decoder
from recsys.evaluation.metrics import ndcg
from recsys.models import AnyRecommender, ItemFeatures
from recsys.storage import read_json, write_json_atomically
from training.fusion.fitting import fit_fusion
from training.fusion.settings import FusionSettings, SecondSettings
from training.recommender.settings import TrainSettings
from training.recommender.trainer import train
from windfire.commands import evaluate
from windfire.commands import publish as publish_command
from windfire.commands import train as train_command

NOW = datetime(2026, 3, 1, tzinfo=UTC)
SETTINGS = FusionSettings(weights=(0.3, 2.0), neighbours=6, shrink=1.0, candidates=48)
HISTORIES = [np.array([1, 2, 3]), np.array([], dtype=np.int64)]
QUESTION: dict[str, Any] = {"k": 10, "beam": 48, "eligibility": Eligibility(excluded=HISTORIES)}


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy that may be written to."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture(scope="module")
def data(tiny_work: Path) -> PreparedData:
    return PreparedData.load(tiny_work)


def model_of(run: Path, data: PreparedData) -> tuple[AnyRecommender, SidTrie]:
    features = ItemFeatures(data.codes, data.text, data.collaborative, data.train_counts)
    return load_model(run / "model", features, data.codebook_sizes), SidTrie.build(data.codes, data.codebook_sizes)


def test_the_weight_is_the_best_on_validation(run: Path, data: PreparedData) -> None:
    manifest = fit_fusion(run, data, SETTINGS)
    fusion = load_fusion(run / "fusion")
    values = manifest["validation"]["ndcg@10"]
    _, histories, targets = data.sequences.targets("valid")
    assert manifest["validation"]["users"] == len(targets)
    model, trie = model_of(run, data)
    for weight in (0.0, 0.3, 2.0):
        decoder = build_decoder(
            model, trie, name="fused", prior=data.train_counts, fusion=replace(fusion, weight=weight)
        )
        ranks = answer_by_decoder(decoder, histories, targets, beam=48, view="masked").ranks
        assert values[f"{weight:g}"] == pytest.approx(ndcg(ranks, 10).mean())
    assert list(values) == ["0", "0.3", "2"]
    assert fusion.weight == manifest["weight"] == float(max(values, key=values.__getitem__))
    assert (fusion.floor, fusion.decay, fusion.max_history, fusion.candidates) == (0.01, 0.6, 50, 48)
    assert manifest["model_version"] == model_version_of(run)
    table = fit_neighbours(data, shrink=1.0, neighbours=6)
    assert manifest["entries"] == len(table.items)
    for name in ("offsets", "items", "similarity"):
        np.testing.assert_array_equal(getattr(fusion.neighbours, name), getattr(table, name))


def test_of_equal_weights_the_smallest_is_taken(run: Path, data: PreparedData) -> None:
    manifest = fit_fusion(run, data, SETTINGS.model_copy(update={"weights": (1e-12, 1e-13)}))
    assert len(set(manifest["validation"]["ndcg@10"].values())) == 1
    assert manifest["weight"] == 0


def test_a_fitting_is_repeated_only_for_other_inputs(run: Path, data: PreparedData) -> None:
    first = fit_fusion(run, data, SETTINGS)
    written = (run / "fusion" / "items.npy").stat().st_mtime_ns
    assert fit_fusion(run, data, SETTINGS) == first
    assert (run / "fusion" / "items.npy").stat().st_mtime_ns == written
    other = fit_fusion(run, data, SETTINGS.model_copy(update={"neighbours": 2}))
    assert other["entries"] < first["entries"]
    assert read_json(run / "fusion" / "manifest.json") == other


def test_a_write_that_fails_leaves_the_earlier_one(run: Path, data: PreparedData) -> None:
    first = fit_fusion(run, data, SETTINGS)
    fusion = replace(load_fusion(run / "fusion"), weight=9.0)
    with pytest.raises(TypeError):
        save_fusion(run / "fusion", fusion, {"settings": object()})  # the manifest, written last, is no JSON
    assert read_json(run / "fusion" / "manifest.json") == first
    assert load_fusion(run / "fusion").weight == first["weight"]
    assert sorted(path.name for path in run.iterdir()) == ["fusion", "manifest.json", "model"]


def test_a_bundle_takes_it_along(run: Path, data: PreparedData, tiny_work: Path, tmp_path: Path) -> None:
    fit_fusion(run, data, SETTINGS)
    write_json_atomically(
        run / "fusion" / "manifest.json", read_json(run / "fusion" / "manifest.json") | {"weight": 0.7}
    )
    registry = Registry(tmp_path / "registry")
    manifest = publish_run(registry, run=run, work=tiny_work, created=NOW)
    held = {name for name in manifest.files if name.startswith("fusion/")}
    assert held == {f"fusion/{name}" for name in ("manifest.json", "offsets.npy", "items.npy", "similarity.npy")}
    bundle = registry.open_current()
    assert load_decoder(bundle).name == "nezha"
    served, (model, trie) = load_decoder(bundle, "fused"), model_of(run, data)
    assert served.name == "fused"
    direct = build_decoder(
        model, trie, name="fused", prior=data.train_counts, fusion=load_fusion(run / "fusion")
    ).decode(HISTORIES, **QUESTION)
    for one, other in zip(served.decode(HISTORIES, **QUESTION).ranked, direct.ranked, strict=True):
        np.testing.assert_array_equal(one.items, other.items)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
    for name in held:
        path = bundle.path / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(CorruptionError, match=path.name):
            Bundle.open(bundle.path)
        path.write_bytes(whole)


def test_a_bundle_without_one_answers_but_not_fused(tiny_registry: Registry) -> None:
    bundle = tiny_registry.open_current()
    assert load_decoder(bundle, "nezha").name == "nezha"
    with pytest.raises(ConfigError, match="windfire train fusion") as raised:
        load_decoder(bundle, "fused")
    assert (raised.value.field, raised.value.value) == ("decoder", "fused")


def spoil(**values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        write_json_atomically(folder / "manifest.json", read_json(folder / "manifest.json") | values)

    return edit


@pytest.mark.parametrize(
    ("edit", "error", "field"),
    [
        (spoil(model_version="0"), VersionMismatchError, "model_version"),
        (spoil(format="windfire.fusion/0"), DataError, "format"),
        (spoil(weight=None), DataError, "weight"),
        (spoil(floor=0), ConfigError, "floor"),
        (lambda folder: (folder / "items.npy").unlink(), CorruptionError, "file"),
        (lambda folder: (folder / "manifest.json").write_text("{"), CorruptionError, "file"),
        (lambda folder: np.save(folder / "offsets.npy", np.zeros(49, np.int64)), DataError, "offsets"),
        (
            lambda folder: np.save(folder / "similarity.npy", -np.load(folder / "similarity.npy")),
            DataError,
            "items, similarity",
        ),
    ],
    ids=["weights", "format", "number", "range", "missing", "not json", "offsets", "entries"],
)
def test_a_fusion_that_does_not_fit_is_not_published(
    run: Path,
    data: PreparedData,
    tiny_work: Path,
    tmp_path: Path,
    edit: Callable[[Path], None],
    error: type[WindfireError],
    field: str,
) -> None:
    fit_fusion(run, data, SETTINGS)
    edit(run / "fusion")
    registry = Registry(tmp_path / "registry")
    with pytest.raises(error) as raised:
        publish_run(registry, run=run, work=tiny_work, created=NOW)
    assert raised.value.field == field
    assert registry.versions() == []


def test_what_nothing_can_be_fitted_to(
    run: Path, flat_run: Path, data: PreparedData, tiny_data: PreparedData, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no finished training run"):
        fit_fusion(tmp_path, data, SETTINGS)
    with pytest.raises(VersionMismatchError):
        fit_fusion(run, tiny_data, SETTINGS)
    nobody = replace(data.sequences, valid_index=np.full_like(data.sequences.valid_index, -1))
    with pytest.raises(DataError, match="no user has a validation target"):
        fit_fusion(run, replace(data, sequences=nobody), SETTINGS)
    with pytest.raises(ConfigError, match="no such decoder"):
        fit_fusion(flat_run, data, SETTINGS)


FLAT = {
    "model": {"shape": "flat", "d_model": 16, "layers": 1, "heads": 2},
    "teacher": {"kind": "none"},
    "steps": 2,
    "batch_tokens": 64,
}


@pytest.fixture(scope="module")
def flat_run(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("flat") / "run"
    train(data, TrainSettings.parse(FLAT), run, seed=1)
    return run


def test_a_second_model_is_weighed_on_validation_and_goes_into_the_bundle(
    run: Path, flat_run: Path, data: PreparedData, tiny_work: Path, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"second": SecondSettings(weights=(0.5, 40.0))})
    plain = fit_fusion(run, data, settings)
    manifest = fit_fusion(run, data, settings, second=flat_run)
    validation = manifest["validation"]
    assert validation["ndcg@10"] == plain["validation"]["ndcg@10"]
    assert {name: list(values) for name, values in validation["ndcg@10.second"].items()} == {
        "0.5": ["0", "0.3", "2"],
        "40": ["0", "0.3", "2"],
    }
    model, trie = model_of(run, data)
    features = ItemFeatures(data.codes, data.text, data.collaborative, data.train_counts)
    second = load_second(flat_run / "model", features, data.codebook_sizes)
    _, histories, targets = data.sequences.targets("valid")
    for weight, own in ((0.5, 0.3), (40.0, 0.0)):
        fusion = replace(load_fusion(run / "fusion"), weight=own, second=Second(second, weight))
        decoder = build_decoder(model, trie, name="fused", prior=data.train_counts, fusion=fusion)
        ranks = answer_by_decoder(decoder, histories, targets, beam=48, view="masked").ranks
        assert validation["ndcg@10.second"][f"{weight:g}"][f"{own:g}"] == pytest.approx(ndcg(ranks, 10).mean())
    by_weights = {(0.0, float(own)): gain for own, gain in validation["ndcg@10"].items()} | {
        (float(weight), float(own)): gain
        for weight, gains in validation["ndcg@10.second"].items()
        for own, gain in gains.items()
    }
    assert by_weights[manifest["second"]["weight"], manifest["weight"]] == max(by_weights.values())
    registry = Registry(tmp_path / "registry")
    held = set(publish_run(registry, run=run, work=tiny_work, created=NOW).files)
    assert {"fusion/second/config.json", "fusion/second/weights.safetensors"} <= held
    served = load_decoder(registry.open_current(), "fused").decode(HISTORIES, **QUESTION)
    whole = replace(load_fusion(run / "fusion"), second=Second(second, manifest["second"]["weight"]))
    direct = build_decoder(model, trie, name="fused", prior=data.train_counts, fusion=whole)
    for one, other in zip(served.ranked, direct.decode(HISTORIES, **QUESTION).ranked, strict=True):
        np.testing.assert_array_equal(one.items, other.items)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)


def test_a_second_model_that_does_not_fit_is_refused(
    run: Path, flat_run: Path, data: PreparedData, tiny_work: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="vectors to histories and items") as raised:
        fit_fusion(run, data, SETTINGS, second=run)
    assert raised.value.field == "second.model.shape"
    settings = SETTINGS.model_copy(update={"weights": (1e-12,), "second": SecondSettings(weights=(40.0,))})
    fit_fusion(run, data, settings, second=flat_run)
    whole = read_json(run / "fusion" / "manifest.json")
    registry = Registry(tmp_path / "registry")
    for described, error, field in (
        (whole["second"] | {"version": "0"}, VersionMismatchError, "second.version"),
        (whole["second"] | {"weight": None}, DataError, "weight"),
        (3, DataError, "second"),
    ):
        write_json_atomically(run / "fusion" / "manifest.json", whole | {"second": described})
        with pytest.raises(error) as refused:
            publish_run(registry, run=run, work=tiny_work, created=NOW)
        assert refused.value.field == field


def test_the_commands_fit_publish_and_evaluate(
    run: Path, flat_run: Path, data: PreparedData, tiny_work: Path, tmp_path: Path
) -> None:
    config = tmp_path / "fusion.yaml"
    config.write_text(yaml.safe_dump({"weights": [0.5], "candidates": 48}))
    paths = ["--run", str(run), "--data", str(tiny_work)]
    fitted = CliRunner().invoke(
        train_command.app, ["fusion", *paths, "--second", str(flat_run), "--config", str(config)]
    )
    assert fitted.exit_code == 0, fitted.output
    assert "neighbours of 48 items" in fitted.output
    assert "second model 2.5: " in fitted.output
    place = ["--registry", str(tmp_path / "registry")]
    published = CliRunner().invoke(publish_command.app, [*place, *paths])
    assert published.exit_code == 0, published.output
    arguments = [*place, "--data", str(tiny_work), "--decoder", "fused", "--json"]
    measured = CliRunner().invoke(evaluate.app, arguments)
    assert measured.exit_code == 0, measured.output
    assert json.loads(measured.stdout)["settings"]["decoder"] == "fused"


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"weights": []}, "weights"), ({"weights": [-1]}, "weights.0"), ({"floor": 0}, "floor"),
        ({"decay": 0}, "decay"), ({"shrink": -1}, "shrink"), ({"neighbours": 0}, "neighbours"),
        ({"candidates": 0}, "candidates"), ({"colour": 1}, "colour"), ({"second": {"weights": []}}, "second.weights"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_named(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match="setting of the fusion") as raised:
        FusionSettings.parse(wrong)
    assert raised.value.field == field


def test_the_commented_settings_are_the_defaults() -> None:
    config = Path(__file__).parents[2] / "config" / "fusion.yaml"
    assert FusionSettings.load(config) == FusionSettings()
    assert set(yaml.safe_load(config.read_text())) == set(FusionSettings.model_fields)
