"""The benchmark of short vectors: what is chosen, what is kept, what is shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

from benchmarks.smec import UNSUPERVISED, Runs, bench, named_directories, references
from benchmarks.smec_data import CHUNK, items, scifact
from benchmarks.smec_settings import CONFIG, BenchSettings
from benchmarks.smec_tables import smec_overview
from benchmarks.tables import render
from recsys.errors import ConfigError, DataError
from recsys.evaluation.judged import Judgements

if TYPE_CHECKING:
    from benchmarks.figures import Report

SMALL: dict[str, Any] = {
    "seeds": [1, 2],
    "replicates": 50,
    "rows": 20,
    "cases": 20,
    "settings": {
        "halvings": 1, "steps": 4, "warmup_steps": 1, "batch": 8, "anchors": 8, "neighbours": 2, "memory": 20, "hard": 5
    },
    "grid": {"supervised": {"learning_rate": [0.001, 0.01]}, "unsupervised": {"rotate": [False, True]}},
    "own": {"search_adaptor": {"recovery": [0.1, 1.0]}},
}  # fmt: skip


@pytest.fixture(scope="session")
def settings() -> BenchSettings:
    return BenchSettings.model_validate({"methods": yaml.safe_load(CONFIG.read_text())["methods"], **SMALL})


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smec")


@pytest.fixture(scope="session")
def report(settings: BenchSettings, tiny_work: Path, work: Path) -> Report:
    return bench(settings, work, "windfire bench smec", {"ring": tiny_work}, public=False, say=lambda _: None)


def test_every_method_is_measured_with_its_interval(report: Report, settings: BenchSettings) -> None:
    named = {figure.name: figure for figure in report.figures}
    trained = [name for name, method in settings.methods.items() if method.kind not in ("truncation", "pca")]
    both = [*trained, *(f"{name}{UNSUPERVISED}" for name in trained if name != "search_adaptor"), "truncation", "pca"]
    for label in both:
        for metric in ("ndcg@10", "recall@10", "recall@100", "neighbours@10"):
            figure = named[f"smec.ring.d3.{label}.{metric}"]
            assert figure.low is not None
            assert figure.high is not None
            assert 0 <= figure.low <= figure.value <= figure.high <= 1
        assert f"smec.ring.{label}.cpu_minutes" in named
    assert f"smec.ring.d3.search_adaptor{UNSUPERVISED}.ndcg@10" not in named
    assert named["smec.ring.d6.full.neighbours@10"].value == 1.0
    assert named["smec.ring.d3.smec.ndcg@10"].n == 20


def test_differences_are_those_of_the_means(report: Report) -> None:
    named = {figure.name: figure.value for figure in report.figures}
    for other in ("mrl", "pca", "search_adaptor"):
        expected = named["smec.ring.d3.smec.ndcg@10"] - named[f"smec.ring.d3.{other}.ndcg@10"]
        assert named[f"smec.ring.d3.smec.ndcg@10.minus.{other}"] == pytest.approx(expected, abs=1e-9)
        assert named[f"smec.ring.d3.smec.ndcg@10.minus.{other}.detectable"] >= 0


def test_methods_are_compared_with_those_that_know_as_much() -> None:
    assert references("pca") == ["smec", "smec_unsupervised"]
    assert references("mrl_unsupervised") == ["smec_unsupervised"]
    assert references("search_adaptor") == ["smec"]
    assert references("smec") == references("full") == []


def test_a_second_call_fits_nothing_and_says_the_same(
    report: Report, settings: BenchSettings, tiny_work: Path, work: Path
) -> None:
    files = {path: path.stat().st_mtime_ns for path in work.rglob("*.npz")}
    again = bench(settings, work, "windfire bench smec", {"ring": tiny_work}, public=False, say=lambda _: None)
    assert again.figures == report.figures
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*.npz")} == files


def test_the_choice_never_sees_the_test(settings: BenchSettings, tiny_work: Path, tmp_path: Path) -> None:
    """Test queries without any sense change no choice, and no fit that a choice was made by."""
    subject = items(tiny_work, "ring", rows=20, cases=20)
    nonsense = replace(
        subject,
        queries=np.ascontiguousarray(-subject.queries[::-1]),
        judgements=Judgements.of([[0]] * len(subject.judgements)),
    )
    chosen, files = [], []
    for index, each in enumerate((subject, nonsense)):
        runs = Runs(each, settings.model_copy(update={"seeds": [1]}), tmp_path / str(index), lambda _: None)
        runs.all()
        chosen.append(runs.chosen)
        folder = tmp_path / str(index)
        files.append({path.relative_to(folder): np.load(path)["3/ndcg@10"] for path in folder.glob("*/*.npz")})
    assert chosen[0] == chosen[1]
    assert files[0].keys() == files[1].keys()
    held_out = [name for name, gains in files[0].items() if len(gains) != 20]
    assert len(held_out) == 2 * 6 + 4 + 2 * 6 + 2  # two choices for each trained method and for PCA, four for one
    assert all(np.array_equal(files[0][name], files[1][name]) for name in held_out)


def test_parts_are_fitted_only_where_the_settings_say(settings: BenchSettings, tiny_work: Path, tmp_path: Path) -> None:
    few = settings.model_copy(update={"seeds": [1], "taken_apart": ["another"]})
    fitted = Runs(items(tiny_work, "ring", rows=20, cases=20), few, tmp_path, lambda _: None).all()
    parts = {name for name, method in settings.methods.items() if method.ablation}
    assert parts
    assert not parts & fitted.keys()
    assert {"mrl", "smec", "smec_unsupervised"} <= fitted.keys()


def test_tables(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path / "smec.json")
    lines = render("smec-ring", tmp_path).splitlines()
    assert lines[0].startswith("| vectors | width | nDCG@10 | 95 % | Recall@10 | 95 % | Recall@100 | 95 % | neighb")
    assert lines[2].startswith("| as they are | 6 | ")
    assert " | 1.0000 | " in lines[2]
    assert [line.split(" | ")[0] for line in lines[3:]] == [
        "| truncation, no labels", "| PCA, no labels", "| MRL, joint", "| Matryoshka-Adaptor", "| Search-Adaptor",
        "| SMEC",
    ]  # fmt: skip
    unlabelled = render("smec-ring-unsupervised", tmp_path).splitlines()
    assert [line.split(" | ")[0] for line in unlabelled[3:]] == [
        "| truncation", "| PCA", "| MRL, joint", "| Matryoshka-Adaptor", "| SMEC"
    ]  # fmt: skip
    parts = render("smec-ring-ablation", tmp_path).splitlines()
    assert [line.split(" | ")[0] for line in parts[3:]] == [
        "| MRL, joint", "| SMEC", "| MRL + SMRL", "| MRL + ADS", "| MRL + S-XBM"
    ]  # fmt: skip
    assert "| Search-Adaptor | yes | 3 |" in render("smec-ring-differences", tmp_path)
    assert "| pca | centred " in render("smec-ring-chosen", tmp_path)
    assert len(smec_overview(report)) == 6
    assert render("smec-ring", tmp_path / "nowhere").startswith("*Not measured yet: `windfire bench smec")
    with pytest.raises(DataError, match="no table"):
        render("smec-ring-colours", tmp_path)
    with pytest.raises(DataError, match="hold nothing"):
        render("smec-other", tmp_path)


def test_the_committed_settings_fit_the_data_and_have_a_quick_form() -> None:
    settings, quick = BenchSettings.load(), BenchSettings.load(quick=True)
    assert settings.seeds == [1, 2, 3, 4, 5]
    assert len(quick.seeds) < len(settings.seeds)
    assert {settings.of(method, {}).halvings for method in settings.methods.values()} == {4}


def test_bad_settings_and_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"methods": {"smec": {"kind": "compressor", "title": "SMEC", "settings": {"colour": 1}}}, **SMALL}
    path = tmp_path / "bench.yaml"
    path.write_text(yaml.safe_dump(value))
    with pytest.raises(ConfigError, match="colour"):
        BenchSettings.load(path)
    for wrong in ("work", "A=work", "x=", "scifact=work"):
        with pytest.raises(ConfigError, match="NAME=WORK"):
            named_directories([wrong])
    with pytest.raises(ConfigError, match="NAME=WORK"):
        named_directories(["x=a", "x=b"])
    assert named_directories(["x=a", "y=b"]) == {"x": Path("a"), "y": Path("b")}
    monkeypatch.setenv("WINDFIRE_DATA", str(tmp_path))
    with pytest.raises(DataError, match="SciFact is absent"):
        scifact(tmp_path, rows=1, say=lambda _: None)


@pytest.mark.realdata
def test_scifact_is_read_whole(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With vectors at hand nothing is encoded; queries and documents are those of the published judgements."""
    monkeypatch.setenv("WINDFIRE_DATA", str(real_data))
    for name, count in (("documents", 5183), ("queries", 1109)):
        vectors = np.arange(count * 2, dtype=np.float32).reshape(count, 2) + 1
        (tmp_path / "scifact" / name).mkdir(parents=True)
        for start in range(0, count, CHUNK):
            part = vectors[start : start + CHUNK]
            np.save(tmp_path / "scifact" / name / f"{start:06}-{start + len(part):06}.npy", part)
    found = scifact(tmp_path, rows=100, say=lambda _: None)
    assert found.train.documents.shape == (5183, 2)
    assert (len(found.train.queries), len(found.queries)) == (809, 300)
    assert found.train.judgements is not None
    assert (len(found.train.judgements.documents), len(found.judgements.documents)) == (919, 339)
    train, test = ({row.tobytes() for row in queries} for queries in (found.train.queries, found.queries))
    assert not train & test
