"""The run directory, and what an interruption leaves of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from recsys.bundle.compressor import load_compressor
from recsys.errors import ConfigError, DataError
from recsys.storage import read_json
from training.smec.settings import SmecSettings
from training.smec.trainer import SmecTrainer, train_smec
from windfire.commands.train import app

if TYPE_CHECKING:
    from training.smec.data import VectorData

SETTINGS = SmecSettings(
    halvings=2, steps=10, warmup_steps=2, batch=8, anchors=8, neighbours=2, memory=30, checkpoint_every=4
)

CONFIG = Path(__file__).resolve().parents[3] / "config" / "smec.yaml"


class _Killed(Exception):  # noqa: N818 - not an error of ours
    pass


class _Dying(SmecTrainer):
    """Ends behind the checkpoint of step 8, in the middle of a phase's steps."""

    def _save(self, path: Path) -> None:
        super()._save(path)
        if self.fitting.steps_done == 8:
            raise _Killed


def test_a_killed_run_goes_on_bit_for_bit(labelled: VectorData, tmp_path: Path) -> None:
    whole = train_smec(labelled, SETTINGS, tmp_path / "whole", seed=1)
    with pytest.raises(_Killed):
        _Dying(labelled, SETTINGS, tmp_path / "killed", seed=1).run()
    assert not (tmp_path / "killed" / "manifest.json").exists()
    resumed = train_smec(labelled, SETTINGS, tmp_path / "killed", seed=1)
    one, other = (load_file(tmp_path / run / "model" / "weights.safetensors") for run in ("whole", "killed"))
    assert all(np.array_equal(one[name].numpy(), other[name].numpy()) for name in one)
    assert resumed["metrics"] == whole["metrics"]
    assert [line.split(",")[0] for line in (tmp_path / "killed" / "metrics.csv").read_text().splitlines()] == [
        "step", "4", "8", "12", "16", "20",
    ]  # fmt: skip


def test_the_run_directory(labelled: VectorData, tmp_path: Path) -> None:
    manifest = train_smec(labelled, SETTINGS, tmp_path, seed=1)
    assert manifest == read_json(tmp_path / "manifest.json")
    assert manifest["widths"] == [8, 4]
    assert manifest["labelled_queries"] == 48
    assert {name.split(".")[1] for name in manifest["metrics"]} == {"smec", "truncation", "pca"}
    assert load_compressor(tmp_path / "model").reduce(labelled.documents, 4).shape == (90, 4)
    assert (tmp_path / "model" / "compressor_8.onnx").is_file()
    before = (tmp_path / "model" / "weights.safetensors").stat().st_mtime_ns
    assert train_smec(labelled, SETTINGS, tmp_path, seed=1) == manifest
    assert (tmp_path / "model" / "weights.safetensors").stat().st_mtime_ns == before


def test_a_checkpoint_of_other_inputs_is_refused(labelled: VectorData, tmp_path: Path) -> None:
    train_smec(labelled, SETTINGS, tmp_path, seed=1)
    with pytest.raises(DataError, match="belongs to other vectors"):
        train_smec(labelled, SETTINGS, tmp_path, seed=2)


def test_without_labels_only_neighbours_are_reported(unlabelled: VectorData, tmp_path: Path) -> None:
    metrics = train_smec(unlabelled, SETTINGS, tmp_path, seed=1)["metrics"]
    assert set(metrics) == {f"d{w}.{m}.neighbours@10" for w in (8, 4) for m in ("smec", "truncation", "pca")}
    assert all(0 <= value <= 1 for value in metrics.values())


def test_a_width_that_cannot_be_halved_is_refused(labelled: VectorData, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="halved 5 times"):
        train_smec(labelled, SETTINGS.model_copy(update={"halvings": 5}), tmp_path, seed=1)


def test_the_reference_settings_are_the_defaults() -> None:
    assert SmecSettings.load(CONFIG) == SmecSettings()
    assert set(yaml.safe_load(CONFIG.read_text())) == set(SmecSettings.model_fields)


@pytest.mark.parametrize("value", [{"halvings": 0}, {"steps": 10}, {"colour": 1}, {"holdout": 1.0}])
def test_impossible_settings_are_refused(value: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"docs/smec\.md"):
        SmecSettings.parse(value)


def test_the_command_trains_on_cached_vectors(labelled: VectorData, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", labelled.documents)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(SETTINGS.model_dump()))
    arguments = ["smec", "--data", str(tmp_path / "v.npy"), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*arguments, "--config", str(tmp_path / "c.yaml")])
    assert result.exit_code == 0, result.output
    assert "4 of 16: nearest ten kept: smec" in result.output
    assert read_json(tmp_path / "run" / "manifest.json")["steps"] == 20
