from __future__ import annotations

import re

import pytest

from benchmarks import slate_cost


def test_every_length_and_layout_gets_a_figure(capsys: pytest.CaptureFixture[str]) -> None:
    slate_cost.main(rounds=10, items=5_000)
    printed = capsys.readouterr().out
    rows = [re.findall(r"\d+", line) for line in printed.splitlines() if line.startswith("│")]
    assert [row[:2] for row in rows] == [["10", "40"], ["20", "80"], ["50", "200"], ["100", "400"]]
    assert all(len(row) == 6 and min(map(int, row[2:])) > 0 for row in rows)
