"""The verifier's benchmark on a toy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.decoding_parts.verifier import TABLES, _build, _timed, bytes_held
from benchmarks.decoding_parts.verifier_settings import CONFIG, VerifierSettings
from benchmarks.figures import Report
from recsys.decoding.eligibility import RequestMask
from recsys.decoding.head_beam import HeadBeam
from recsys.decoding.nezha import NezhaDecoder
from recsys.errors import ConfigError
from windfire.commands.bench import app

TOY = """
seed: 1
catalogues: {500: [8, 8, 8], 900: null}
skew: [0.5, 1.0, 0.0]
model: {d_model: 16, layers: 1, heads: 2}
engine: torch
known: 300
history: 4
excluded: 5
beam: 10
answer: 5
segments: {scene: 0.8, stock: 0.9}
requested: [scene, stock]
kept: [[scene, stock], [stock]]
rounds: 4
batch: 7
seconds: 0.05
witnesses: 2
bitset_rounds: 2
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "verifier.yaml"
    path.write_text(TOY)
    return path


def test_every_structure_has_its_figures(config: Path, tmp_path: Path) -> None:
    command = ["decoding", "--part", "verifier", "--config", str(config), "--json", str(tmp_path / "v.json")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    report = Report.load(tmp_path / "v.json")
    found = {figure.name: figure.value for figure in report.figures}
    of_structure = (
        "bytes_per_item", "build_s", "share", "mask_ms", "decode_ms", "plain_ms", "changes_per_s",
        "single_changes_per_s",
    )  # fmt: skip
    of_sets = ("intersection_ms", "intersection_bytes_per_item", "bitset_ms")
    assert set(found) == {
        *(f"decoding.verifier.{name}.items500.{what}" for name in ("set", "bitmap", "csr") for what in of_structure),
        *(f"decoding.verifier.items500.{what}" for what in of_sets),
    }
    named = {figure.name: figure for figure in report.figures}
    assert [row[0] for row in TABLES[""](named).rows] == ["500, set", "500, bitmap", "500, csr"]
    assert [row[0] for row in TABLES["sets"](named).rows] == ["500"]
    assert all(value > 0 for value in found.values())
    assert all(found[f"decoding.verifier.{name}.items500.share"] < 1 for name in ("set", "bitmap", "csr"))


def test_what_is_held_is_counted_array_by_array(config: Path) -> None:
    """500 items: two bytes for the leaf of each and for the items of each leaf, four per node where children begin."""
    world = _build(500, [8, 8, 8], VerifierSettings.load(config))
    one, two, leaves = (world.trie.nodes(depth) for depth in (1, 2, 3))
    starts = 4 * ((1 + 1) + (one + 1) + (two + 1))
    marks = 8 * (500 // 64 + 1) + 4 * (leaves // 64 + 1)
    live = -(-500 // 8) + 4 * (one + two) + sum(-(-nodes // 8) for nodes in (one, two, leaves))
    shared = starts + 500 * (2 + 2) + marks + live
    assert bytes_held(world, "csr") == shared + one + two + leaves
    assert bytes_held(world, "bitmap") == shared + 8 * (1 + one + two)
    assert bytes_held(world, "sorted_keys") == shared + 4 * (one + two + leaves)


def test_time_in_masks_is_added_up_and_the_loops_are_left_as_they_were(config: Path) -> None:
    settings = VerifierSettings.load(config)
    world = _build(500, [8, 8, 8], settings)
    decoder = NezhaDecoder(world.model, world.trie)
    eligibility = world.segments.eligibility(["stock"], [np.arange(40)])
    before = (HeadBeam._chosen, RequestMask.keeps)
    with _timed() as clock:
        decoder.decode([np.array([1, 2])], k=5, beam=10, eligibility=eligibility)
        made = clock[0]
    assert 0 < made < clock[0]  # what hides children is added at the end
    assert (HeadBeam._chosen, RequestMask.keeps) == before


def test_the_committed_settings_are_valid() -> None:
    whole, quick = VerifierSettings.load(CONFIG), VerifierSettings.load(CONFIG, quick=True)
    assert list(whole.catalogues) == [100_000, 1_000_000, 10_000_000]
    assert [items for items, sizes in quick.catalogues.items() if sizes] == [100_000]


def test_a_wrong_setting_is_named(config: Path) -> None:
    config.write_text(TOY.replace("batch: 7", "batch: 0"))
    with pytest.raises(ConfigError) as raised:
        VerifierSettings.load(config)
    assert raised.value.field == "batch"
