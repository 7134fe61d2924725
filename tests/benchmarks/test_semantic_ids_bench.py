from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks.figures import Figure, Report
from benchmarks.quality import Quality
from benchmarks.quality_settings import DatasetSettings, MethodSettings, QualitySettings
from benchmarks.semantic_ids import CONFIG, bench_semantic_ids, change_figures
from benchmarks.semantic_ids_tables import semantic_ids_overview
from benchmarks.tables import render
from recsys.errors import ConfigError, DataError
from recsys.storage import write_json_atomically

if TYPE_CHECKING:
    from pathlib import Path

METHOD = {"kind": "popularity", "title": "p"}


def _load(tmp_path: Path, datasets: dict[str, object]) -> QualitySettings:
    path = tmp_path / "bench.yaml"
    path.write_text(
        yaml.safe_dump(
            {"seeds": [1], "datasets": datasets, "methods": {"p": METHOD}, "default_methods": ["p"]}, sort_keys=False
        )
    )
    return QualitySettings.load(path)


def test_a_data_set_takes_over_what_it_does_not_change(tmp_path: Path) -> None:
    settings = _load(
        tmp_path,
        {
            "a": {"importer": "x", "source": "s", "offline": {"split": {"strategy": "latest"}}, "methods": []},
            "a.b": {"base": "a", "offline": {"semantic_ids": {"source": "text"}}},
            "a.b.c": {"base": "a.b", "since": "a", "warm_start": True, "methods": ["p"]},
        },
    )
    last = settings.datasets["a.b.c"]
    assert last.offline == {"split": {"strategy": "latest"}, "semantic_ids": {"source": "text"}}
    assert (last.importer, last.methods, settings.datasets["a.b"].methods) == ("x", ["p"], [])
    assert settings.datasets["a"].warm_start is False

    quality = Quality(settings, tmp_path / "work", tmp_path, lambda _: None)
    with pytest.raises(DataError, match="not there"):
        quality.prepare("a.b.c")
    (tmp_path / "s").mkdir()
    assert [step[0] for step in quality.steps("a")] == ["import", "offline"]
    (only,) = quality.steps("a.b.c")
    tables, earlier = tmp_path / "work" / "data" / "a" / "tables", tmp_path / "work" / "data" / "a" / "prepared"
    assert only[only.index("--data") + 1] == str(tables)
    assert only[only.index("--warm-start") + 1] == str(earlier)
    assert len({quality.key(name) for name in settings.datasets}) == 3


@pytest.mark.parametrize("link", ["base", "since"])
def test_only_an_earlier_data_set_can_come_before(link: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="earlier data set") as caught:
        _load(tmp_path, {"a": {link: "b"}, "b": {}})
    assert caught.value.field == f"datasets.a.{link}"


def _prepared(folder: Path, items: dict[str, list[int]]) -> Path:
    rows = list(enumerate(items.items()))
    tables = {
        "items": pa.table({"item_index": [row for row, _ in rows], "item_id": [name for _, (name, _) in rows]}),
        "semantic_ids": pa.table({"item_index": [row for row, _ in rows], "codes": [codes for _, (_, codes) in rows]}),
    }
    for job, table in tables.items():
        (folder / job / "data").mkdir(parents=True)
        pq.write_table(table, folder / job / "data" / "part.parquet")
        (folder / job / "manifest.json").write_text("{}")
    return folder


def test_changed_prefixes_are_counted_over_the_items_of_both(tmp_path: Path) -> None:
    before = _prepared(tmp_path / "before", {"a": [1, 2], "b": [1, 3], "c": [2, 0], "gone": [0, 0]})
    after = _prepared(tmp_path / "after", {"new": [9, 9, 0], "c": [2, 1, 0], "a": [1, 2, 0], "b": [0, 3, 5]})
    figures = change_figures("ring", before, after)
    assert [(figure.name, figure.n) for figure in figures] == [
        ("sids.ring.changed_prefix1", 3), ("sids.ring.changed_prefix2", 3),
    ]  # fmt: skip
    assert [figure.value for figure in figures] == pytest.approx([1 / 3, 2 / 3])


def test_variants_are_reported_on_and_compared_with_their_base(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = prepared.parent.parent.parent
    (work / "sources" / "ring").mkdir(parents=True)
    monkeypatch.setenv("WINDFIRE_DATA", str(work / "sources"))
    ring = DatasetSettings(source="ring", methods=["p"])
    settings = QualitySettings(
        seeds=[1], replicates=50, methods={"p": MethodSettings(kind="popularity", title="p")}, default_methods=["p"],
        datasets={"ring": ring, "ring.same": ring.model_copy(update={"base": "ring", "since": "ring"})},
    )  # fmt: skip
    shutil.copytree(prepared.parent, work / "data" / "ring.same")
    quality = Quality(settings, work, work / "sources", lambda _: None)
    for name in settings.datasets:  # as if the offline jobs had run
        write_json_atomically(work / "data" / name / "preparation.json", {"key": quality.key(name), "cpu_seconds": 1.0})

    said: list[str] = []
    outcome = bench_semantic_ids(settings, work, "windfire bench semantic-ids", [], say=said.append)
    named = {figure.name: figure for figure in outcome.report.figures}
    assert outcome.failures == []
    assert [line.partition(",")[0] for line in said] == ["ring: p", "ring.same: p"]  # a base's arms are read once
    assert named["quality.ring.same.p.ndcg@10"].value == named["quality.ring.p.ndcg@10"].value > 0
    difference = named["quality.ring.same.p.ndcg@10.minus.default"]
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)
    assert "quality.ring.p.ndcg@10.minus.default" not in named
    assert [named[f"sids.ring.level{level}.density"].value for level in (1, 2)] == [1, 1]
    assert named["sids.ring.level1.purity"].value == 1
    assert [named[f"sids.ring.same.changed_prefix{level}"].value for level in (1, 2)] == [0, 0]


def _subject(dataset: str, *methods: str) -> list[Figure]:
    figures = [Figure(f"sids.{dataset}.{what}", 5.0, "items") for what in ("items", "colliding")]
    for level in (1, 2, 3):
        named = {"density": 0.25, "evenness": 0.5, "purity": 0.75, "kept": 0.125, "unexplained": 0.375}
        figures += [Figure(f"sids.{dataset}.level{level}.{what}", value, "share") for what, value in named.items()]
        figures.append(Figure(f"sids.{dataset}.changed_prefix{level}", level / 10, "share"))
    for method in methods:
        stem = f"quality.{dataset}.{method}"
        figures += [Figure(f"{stem}.{metric}@{k}", 0.01, "share") for metric in ("ndcg", "recall") for k in (10, 50)]
        for other in ("default", "children"):
            figures += [
                Figure(f"{stem}.{metric}@10.minus.{other}", -0.002, "share", -0.003, 0.001)
                for metric in ("ndcg", "recall")
            ]
            figures.append(Figure(f"{stem}.ndcg@10.detectable.{other}", 0.0007, "share"))
    return figures


def test_every_table_is_made_from_its_data_sets(tmp_path: Path) -> None:
    figures = [
        *_subject("beauty.codebook64", "children", "plain"), *_subject("beauty_time", "nezha"),
        *_subject("beauty_time.product", "nezha"), *_subject("scientific.product"),
        *_subject("beauty_time.warm", "nezha"),
    ]  # fmt: skip
    report = Report("windfire bench semantic-ids", {}, [1], figures, "now", {})
    report.save(tmp_path / "semantic_ids.json")
    gain = "-.0020 (-.0030 to +.0010)"
    lines = {
        kind: render(f"semantic-ids-{kind}", tmp_path).splitlines()[2:]
        for kind in ("codebooks", "tokenizers", "reports", "retraining")
    }
    assert lines["codebooks"] == [f"| 64 | 0.250 | 0.250 | .0100 | .0100 | {gain} |"]
    assert [line.split(" | ")[1] for line in lines["tokenizers"]] == ["default", "product"]
    assert lines["tokenizers"][1].endswith(f"| {gain} | {gain} | .0007 |")
    assert [line.split(" | ")[:2] for line in lines["reports"]] == [
        ["| beauty_time", "default"], ["| beauty_time", "product"], ["| scientific", "product"],
    ]  # fmt: skip
    assert lines["retraining"] == [f"| warm | .1000 | .2000 | .3000 | .0100 | .0100 | {gain} |"]
    assert len(semantic_ids_overview(report)) == 4
    with pytest.raises(DataError, match="no table"):
        render("semantic-ids-nothing", tmp_path)


def test_the_committed_settings_name_known_methods() -> None:
    settings = QualitySettings.load(CONFIG)
    assert settings.datasets["beauty.codebook32"].offline["semantic_ids"]["codebook_sizes"] == [32, 32, 32]
    assert settings.chosen_methods("beauty_time.warm", []) == ["nezha"]
    assert settings.methods["plain"].settings["train"]["model"] == {
        "shape": "compact", "item_rows": False, "whole_codebook": True,
    }  # fmt: skip
