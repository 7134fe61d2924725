from __future__ import annotations

from typing import TYPE_CHECKING

from typer.testing import CliRunner

from recsys.records import TablesManifest
from recsys.storage import read_json
from windfire.commands.simulate import app

if TYPE_CHECKING:
    from pathlib import Path


def test_simulate_writes_tables_and_says_how_many(tmp_path: Path) -> None:
    out = tmp_path / "tables"
    arguments = ["--size", "tests", "--seed", "1", "--days", "2", "--users", "30", "--items", "150", "--from-day", "3"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    assert result.exit_code == 0
    counts = TablesManifest.load(out).counts
    assert str(counts["events"].written) in result.stdout
    world = read_json(out / "world.json")
    assert (world["seed"], world["from_day"], world["days"]) == (1, 3, 2)
    assert (world["size"]["users"], world["size"]["items"]) == (30, 150)


def test_simulate_needs_a_place_to_write() -> None:
    assert CliRunner().invoke(app, ["--size", "tests"]).exit_code == 2
