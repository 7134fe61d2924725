from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.import_model import DECODERS, ImportSettings, bench


def test_the_measurement_holds_what_it_promises(tmp_path: Path) -> None:
    settings = ImportSettings(
        "openonerec", items=40, users=40, width=16, model_steps=3, head_steps=6, beam=20, requests=8
    )
    said: list[str] = []
    report = bench(tmp_path / "made", settings, "windfire bench import-model", say=said.append)
    values = {figure.name: figure.value for figure in report.figures}
    assert len(said) == 4
    assert values["import.openonerec.difference"] < 1e-4
    for decoder in DECODERS:
        assert values[f"import.openonerec.{decoder}.ineligible"] == 0
        assert 0 <= values[f"import.openonerec.{decoder}.recall@10"] <= 1
    assert values["import.openonerec.beam.top10"] == 1
    # in float32 two items closer than rounding may change places
    assert values["import.openonerec.speculative.top10"] == pytest.approx(1, abs=0.03)
    assert values["import.openonerec.beam.ndcg@10"] == pytest.approx(
        values["import.openonerec.speculative.ndcg@10"], abs=0.03
    )
