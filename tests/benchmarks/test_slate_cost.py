from __future__ import annotations

import re

import pytest

from benchmarks import slate_cost


def test_every_length_and_layout_gets_a_figure(capsys: pytest.CaptureFixture[str]) -> None:
    slate_cost.main(rounds=10, items=5_000)
    printed = capsys.readouterr().out
    rows = [re.findall(r"[\d.]+", line) for line in printed.splitlines() if line.startswith("│")]
    layouts, pages = rows[:4], rows[4:]
    assert [row[:2] for row in layouts] == [["10", "40"], ["20", "80"], ["50", "200"], ["100", "400"]]
    assert [row[0] for row in pages] == ["10", "20", "50", "100"]
    assert [len(row) for row in rows] == [6] * 4 + [4] * 4
    assert all(float(figure) > 0 for row in rows for figure in row)
