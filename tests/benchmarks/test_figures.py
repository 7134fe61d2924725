from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from benchmarks.figures import Figure, Report, environment, now
from recsys.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


def test_a_report_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    figures = [Figure("quality.x.ease.masked.ndcg@10", 0.5, "share", 0.4, 0.6, 9, "1 seed"), Figure("a.b", 1.0, "ms")]
    report = Report("windfire bench quality", {"seeds": [1]}, [1], figures, now(), environment())
    report.save(tmp_path / "q.json")
    assert Report.load(tmp_path / "q.json") == report
    value = json.loads((tmp_path / "q.json").read_text())
    assert set(value) == {"command", "started", "environment", "settings", "seeds", "figures"}
    assert set(value["figures"][0]) == {"name", "value", "unit", "low", "high", "n", "note"}
    assert {"device", "cpu", "threads", "versions", "git_commit"} <= set(value["environment"])


@pytest.mark.parametrize("text", ["{}", "[]", "not json", '{"figures": [{"nam": 1}]}'])
def test_another_form_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "q.json").write_text(text)
    with pytest.raises(DataError, match="no readable figures"):
        Report.load(tmp_path / "q.json")


def test_what_a_run_did_not_measure_is_kept_from_an_earlier_one() -> None:
    def report(commit: str, cpu: str, *figures: Figure) -> Report:
        return Report("windfire bench quality", {}, [1], figures, now(), {"git_commit": commit, "cpu": cpu})

    old, new = (
        Figure("quality.x.ease.masked.ndcg@10", 0.5, "share"),
        Figure("quality.x.ease.cpu_minutes", 2.0, "minutes"),
    )
    token = Figure("quality.x.token_nezha.masked.ndcg@10.minus.ease", 0.1, "share", note="1 seed")
    merged = report("b", "one", new).over(report("a", "one", old, token))
    assert [figure.name for figure in merged.figures] == [new.name, token.name]
    assert merged.figures[1].note == "1 seed; measured at a"
    again = report("c", "two", old).over(merged)
    assert [figure.note for figure in again.figures] == ["", "1 seed; measured at a"]
    same = report("a-dirty", "one", old).over(report("a", "one", token))
    assert same.figures[1].note == "1 seed"
    elsewhere = report("c", "two", old).over(report("a", "one", token))
    assert elsewhere.figures[1].note == "1 seed; measured at a on one"
