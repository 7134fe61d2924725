from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.figures import ROOT
from benchmarks.quality_arms import ARMS
from benchmarks.quality_settings import QualitySettings
from benchmarks.settings_file import merged
from offline.settings import OfflineSettings
from recsys.baselines.sasrec import SasRecSettings
from recsys.errors import ConfigError
from training.fusion.settings import FusionSettings
from training.recommender.settings import TrainSettings

if TYPE_CHECKING:
    from pathlib import Path

ROW = "{kind: popularity, title: p}"


@pytest.mark.parametrize("quick", [False, True])
def test_the_committed_settings_fit_every_reader(quick: bool) -> None:
    settings = QualitySettings.load(quick=quick)
    methods = settings.methods.values()
    assert {method.kind for method in methods} == set(ARMS) - {"continued", "rere"}  # those are in rere.yaml
    trained = [TrainSettings.parse(m.settings["train"]) for m in methods if m.kind == "recommender"]
    assert {one.model.shape for one in trained} == {"compact", "flat", "token"}
    assert all(SasRecSettings(**method.settings) for method in methods if method.kind == "sasrec")
    assert all(OfflineSettings.parse(dataset.offline) for dataset in settings.datasets.values())
    assert {other for method in methods for other in method.against} <= set(settings.methods)


def test_the_settings_for_a_gpu_fit_every_reader() -> None:
    settings = QualitySettings.load(ROOT / "benchmarks" / "gpu" / "quality.yaml")
    trained = [TrainSettings.parse(m.settings["train"]) for m in settings.methods.values() if m.kind == "recommender"]
    assert [one.model.d_model for one in trained] == [128, 256, 512, 1024]
    assert all(OfflineSettings.parse(dataset.offline) for dataset in settings.datasets.values())


def test_the_issue_s_methods_and_data_sets_are_there() -> None:
    settings = QualitySettings.load()
    assert set(settings.datasets) == {"beauty", "beauty_time", "scientific", "movielens"}
    assert settings.default_methods == [
        "popularity", "itemcf", "ease", "sasrec", "flat", "nezha", "nezha_fused", "nezha_fused_flat",
        "nezha_fused_ease", "token_nezha", "token_beam",
    ]  # fmt: skip
    assert settings.seeds == [1, 2, 3]


def test_beam_reads_the_weights_of_nezha() -> None:
    methods = QualitySettings.load().methods
    assert methods["token_beam"].settings["train"] == methods["token_nezha"].settings["train"]
    assert methods["token_beam"].settings["decoder"] == "beam"


def test_fusion_reads_the_weights_of_nezha() -> None:
    methods = QualitySettings.load().methods
    assert methods["nezha_fused"].settings["train"] == methods["nezha"].settings["train"]
    assert FusionSettings.parse(methods["nezha_fused"].settings["fusion"]) == FusionSettings()
    assert methods["nezha_fused_flat"].settings["train"] == methods["nezha"].settings["train"]
    assert methods["nezha_fused_flat"].settings["second"] == methods["flat"].settings["train"]


def test_mappings_are_merged_and_all_else_replaced() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert merged(base, {"a": {"c": [3]}, "e": {"f": 4}}) == {"a": {"b": 1, "c": [3]}, "d": 3, "e": {"f": 4}}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 3}


def test_rows_are_chosen_in_the_order_of_the_tables(tmp_path: Path) -> None:
    settings = QualitySettings.load()
    assert settings.chosen_methods("beauty", ["nezha", "ease"]) == ["ease", "nezha"]
    assert settings.chosen_datasets([]) == list(settings.datasets)
    assert settings.seeds_of("beauty", "ease") == [1]
    assert settings.seeds_of("beauty", "nezha") == [1, 2, 3]
    with pytest.raises(ConfigError, match="unknown method"):
        settings.chosen_methods("beauty", ["nehza"])
    with pytest.raises(ConfigError, match="unknown dataset"):
        settings.chosen_datasets(["beuaty"])


@pytest.mark.parametrize(
    "text",
    [
        "- a list",
        "{seeds: []",
        "{seeds: [], datasets: {}, methods: {}, default_methods: []}",
        f"{{seeds: [1], datasets: {{}}, methods: {{p: {ROW}}}, default_methods: [], colour: red}}",
        f"{{seeds: [1], datasets: {{}}, methods: {{q: {{like: p}}, p: {ROW}}}, default_methods: []}}",
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "q.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        QualitySettings.load(path)
