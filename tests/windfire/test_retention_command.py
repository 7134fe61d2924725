from __future__ import annotations

from typing import TYPE_CHECKING

from typer.testing import CliRunner

from recsys.event_log import EventLog, Exposure, ExposureLog
from windfire.commands.retention import app

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

OLD = Exposure(
    request_id="r", user_id="ann", time=1, scene=None, items=["a"], positions=[0], scores=[1.0], sources=["nezha"],
    propensities=[1.0], served_by="nezha", decoder=None, bundle_version="b", catalog_version="b.0", arms={},
)  # fmt: skip


def test_old_exposures_of_all_workers_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = [tmp_path, tmp_path / "worker-0", tmp_path / "worker-1"]
    for state in states:
        EventLog(state / "events").close()
        log = ExposureLog(state / "exposures", segment_bytes=300)  # each record fills one
        for _ in range(3):
            log.append([OLD])
        log.close()
    monkeypatch.setenv("WINDFIRE_EXPOSURE_RETENTION", "P1D")
    done = CliRunner().invoke(app, ["--state", str(tmp_path)], catch_exceptions=False)
    assert done.output == "segments removed: 0 of events, 9 of exposures\n"
    assert [len(list((state / "exposures").glob("*.log"))) for state in states] == [1, 1, 1]
