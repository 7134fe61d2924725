from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from recsys.datasets.prepared import PreparedData
from recsys.errors import ConfigError, DataError, InputError
from recsys.semantic_ids.artefact import Artefact
from recsys.semantic_ids.settings import SemanticIdSettings
from recsys.semantic_ids.sources import fit_source
from recsys.semantic_ids.tokenizer import fit_tokenizer
from windfire.commands.offline import app
from windfire.sid_report import subject_of_work


def call(*arguments: object) -> str:
    options = [str(argument) for argument in arguments]
    return CliRunner().invoke(app, ["report-sids", *options], catch_exceptions=False).stdout


def figures(path: Path) -> dict[str, float]:
    return {figure["name"]: figure["value"] for figure in json.loads(path.read_text())["figures"]}


def write_sids(path: Path, codes: np.ndarray, start: int = 0) -> Path:
    path.write_text(json.dumps({str(n): row for n, row in enumerate(codes.tolist(), start=start)}))
    return path


def test_a_work_directory_is_reported_as_table_json_and_plot(tiny_work: Path, tmp_path: Path) -> None:
    shown = call("--data", tiny_work, "--json", tmp_path / "q.json", "--svg", tmp_path / "q.svg")
    found = figures(tmp_path / "q.json")
    assert "48 items, 48 semantic IDs" in shown
    assert found["sids.level1.used"] == 4
    assert found["sids.level1.entropy"] == pytest.approx(2)
    assert found["sids.colliding"] == 0
    assert "sids.level3.kept" in found
    assert "sids.reconstruction_error" not in found  # this tokenizer has no codebooks
    assert (tmp_path / "q.svg").read_text().startswith("<svg")


def test_a_tokenizer_of_our_own_is_measured_on_the_vectors_it_was_built_on(tiny_work: Path, tmp_path: Path) -> None:
    data = PreparedData.load(tiny_work)
    settings = SemanticIdSettings(source="text")
    source, _ = fit_source(settings, data.text, data.collaborative)
    vectors = source.embed(data.text, data.collaborative)
    tokenizer = fit_tokenizer(vectors, settings.fitting((4, 4, 3)), seed=0)
    for job in ("items", "text_embeddings", "collaborative"):
        (tmp_path / job).symlink_to(tiny_work / job)
    folder = tmp_path / "semantic_ids"
    folder.mkdir()
    (folder / "data").symlink_to(tiny_work / "semantic_ids" / "data")
    description = {"tokenizer_version": "v", "codebook_sizes": [4, 4, 3], "settings": settings.described(), "text": {}}
    ids = np.asarray(data.items["item_id"].to_pylist(), dtype=object)
    Artefact(description, settings, tokenizer, source, ids, data.codes).save(folder)
    subject = subject_of_work(tmp_path, vectors="own", depth=1)
    assert subject.vectors is not None
    assert subject.reconstructed is not None
    np.testing.assert_array_equal(subject.vectors, vectors)
    np.testing.assert_array_equal(subject.reconstructed, tokenizer.reconstruct(data.codes))
    assert subject.categories == ["All"] * 48
    assert subject_of_work(tmp_path, vectors="fused", depth=1).reconstructed is None


def test_a_file_alone_is_measured_without_vectors(tmp_path: Path) -> None:
    codes = np.array([[0, 1], [0, 1], [3, 0]])
    shown = call("--sids", write_sids(tmp_path / "x.json", codes), "--json", tmp_path / "q.json")
    found = figures(tmp_path / "q.json")
    assert "2 items share theirs" in shown
    assert (found["sids.level1.size"], found["sids.level1.used"]) == (4, 2)
    assert "sids.level1.kept" not in found


def test_a_file_is_matched_with_a_catalogue(tiny_work: Path, tmp_path: Path) -> None:
    codes = PreparedData.load(tiny_work).codes
    named = {f"item-{n:02d}": row for n, row in enumerate(codes.tolist())}
    file = tmp_path / "x.json"
    file.write_text(json.dumps({**{name: named[name] for name in sorted(named)[:40]}, "other": [0, 0, 0]}))
    shown = call("--sids", file, "--data", tiny_work, "--json", tmp_path / "q.json")
    assert "1 items of the file are not in the catalogue, 8 only there" in shown
    assert figures(tmp_path / "q.json")["sids.items"] == 40


def test_ids_that_do_not_fit_are_refused(tiny_work: Path, tmp_path: Path) -> None:
    file = write_sids(tmp_path / "x.json", np.array([[0, 1]]))
    with pytest.raises(DataError, match="no item in common"):
        call("--sids", file, "--data", tiny_work, "--shift", 1)
    (tmp_path / "y.json").write_text('{"a": [0]}')
    with pytest.raises(InputError, match="no number"):
        call("--sids", tmp_path / "y.json", "--data", tiny_work, "--shift", 1)
    with pytest.raises(ConfigError, match="nothing to measure"):
        call()


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "items", "levels"),
    [
        ("amazon2014_beauty/sids/letter_paper.index.json", 12_101, 4),
        ("amazon2018_scientific/sids/rqvae_native.index.json.gz", 4_344, 4),
    ],
)
def test_published_files_load(name: str, items: int, levels: int, real_data: Path, tmp_path: Path) -> None:
    call("--sids", real_data / name, "--json", tmp_path / "q.json")
    found = figures(tmp_path / "q.json")
    assert found["sids.items"] == items
    assert found["sids.level1.size"] <= 256
    assert f"sids.level{levels}.entropy" in found
