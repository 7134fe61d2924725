"""The decoding benchmark on a toy: what it times is a whole answer, and its ratios are those of the rounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks.decoding import Catalogue, beam_figures, bench, interleaved
from benchmarks.decoding_methods import methods
from benchmarks.decoding_settings import CONFIG, DecodingSettings
from benchmarks.figures import Report
from recsys.errors import ConfigError
from windfire.commands.bench import app

TOY = """
seed: 1
items: 300
codebooks: [8, 8, 8]
skew: [0.5, 1.0, 0.0]
history: 4
answer: 5
beams: [3, 20]
threads: [1, 2]
rounds: 4
slow_rounds: 2
slow: [beam, nezha_posthoc]
backbones:
  small: {shape: token, d_model: 16, layers: 1, heads: 2}
  tiny: {shape: compact, d_model: 16, layers: 1, heads: 2}
"""

ROUNDS = {"prefill": [1.0, 2.0, 4.0], "nezha": [2.0, 3.0, 4.0], "beam": [8.0, np.nan, 8.0]}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "decoding.yaml"
    path.write_text(TOY)
    return path


@pytest.fixture
def settings(config: Path) -> DecodingSettings:
    return DecodingSettings.load(config)


def test_every_place_has_its_figures(settings: DecodingSettings) -> None:
    before = torch.get_num_threads()
    report = bench(settings, "windfire bench decoding", say=lambda _: None)
    assert torch.get_num_threads() == before
    names = {figure.name for figure in report.figures}
    engines = {
        f"{name}{ending}"
        for name in ("prefill", "nezha", "flat")
        for ending in ("", "_torch_bf16", "_onnx", "_onnx_int8")
    }
    compact = engines | {"nezha_bitmap", "nezha_sorted_keys", "nezha_posthoc"}
    expected = {
        f"decoding.{backbone}{threads}.beam{beam}.{method}.ms"
        for backbone, offered in (("small", compact | {"beam"}), ("tiny", compact))
        for threads in ("", "_2threads")
        for beam in (3, 20)
        for method in offered
    }
    assert {name for name in names if name.endswith(".ms")} == expected
    assert {name for name in names if name.endswith("over_nezha")} == {
        f"decoding.small{threads}.beam{beam}.beam.over_nezha" for threads in ("", "_2threads") for beam in (3, 20)
    }
    assert all(figure.value > 0 and figure.low <= figure.value <= figure.high for figure in report.figures)  # type: ignore[operator]


def test_structures_answer_alike_and_the_released_flow_answers_less(settings: DecodingSettings) -> None:
    drawn = Catalogue.draw(settings)
    backbone = settings.backbones["tiny"]
    assert backbone is not None
    calls = methods(backbone, settings, drawn.codes, drawn.trie, 20)
    for history in drawn.histories:
        answers = [calls[name](history).ranked[0] for name in ("nezha", "nezha_bitmap", "nezha_sorted_keys")]
        for other in answers[1:]:
            np.testing.assert_array_equal(other.items, answers[0].items)
        leaves = calls["nezha_posthoc"](history)
        assert len(set(leaves.tolist())) == len(leaves) <= 20
        assert set(leaves.tolist()) <= set(range(drawn.trie.nodes(3)))


def test_slow_methods_are_timed_in_fewer_rounds(settings: DecodingSettings) -> None:
    drawn = Catalogue.draw(settings)
    calls = {"prefill": lambda _: None, "beam": lambda _: None}
    times = interleaved(calls, settings, drawn.histories, np.random.default_rng(0))
    assert np.isnan(times["beam"]).tolist() == [False, True, False, True]
    assert not np.isnan(times["prefill"]).any()


def test_ratios_are_taken_inside_the_rounds() -> None:
    times = {
        "prefill": np.array([1.0, 2.0, 4.0]),
        "nezha": np.array([2.0, 3.0, 4.0]),
        "beam": np.array([8.0, np.nan, 8.0]),
    }
    found = {figure.name: figure for figure in beam_figures("d", times, np.random.default_rng(0))}
    assert found["d.nezha.ms"].value == 3.0
    assert found["d.nezha.over_prefill"].value == 1.5
    assert found["d.beam.over_nezha"].value == 3.0
    assert found["d.beam.over_nezha"].n == 2


def test_the_command_writes_the_figures(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "decoding.json"
    result = CliRunner().invoke(app, ["decoding", "--config", str(config), "--json", str(out)])
    assert result.exit_code == 0, result.output
    report = Report.load(out)
    assert report.seeds == [1]
    assert report.environment["threads"] == [1, 2]
    assert "small, beam 3" in result.output


def test_the_committed_settings_are_valid() -> None:
    assert set(DecodingSettings.load(CONFIG).backbones) == {"d256x4", "d512x8", "compact128x3"}
    assert DecodingSettings.load(CONFIG, quick=True).rounds < DecodingSettings.load(CONFIG).rounds


def test_a_wrong_setting_is_named(config: Path) -> None:
    config.write_text(TOY.replace("rounds: 4", "rounds: 0", 1))
    with pytest.raises(ConfigError) as raised:
        DecodingSettings.load(config)
    assert raised.value.field == "rounds"
