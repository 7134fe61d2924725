from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from feature_store.opening import open_store
from feature_store.standard import USER_RECENT, recent_items
from recsys.datasets.importing import import_dataset
from recsys.errors import DataError
from serving.histories import history_address
from windfire.commands.serve import app

if TYPE_CHECKING:
    from pathlib import Path

    from serving.settings import Settings


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What the server was started with."""
    started: list[Settings] = []
    monkeypatch.setattr("serving.runner.run", started.append)
    return started


def test_users_of_an_imported_log_are_known(served: list[Settings], tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("user_id,item_id,time,action\nann,a,1,click\nann,b,2,impression\nann,c,3,purchase\n")
    import_dataset("csv", log, tmp_path / "tables")
    call = ["--state", str(tmp_path / "state"), "--data", str(tmp_path / "tables")]
    for _ in range(2):
        CliRunner().invoke(app, call, catch_exceptions=False)
    store = open_store(history_address(served[1]))
    assert recent_items(store.read([(USER_RECENT, "ann")])[0]) == ["a", "c"]
    store.close()


def test_histories_come_from_tables(served: list[Settings], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="windfire import"):
        CliRunner().invoke(app, ["--data", str(tmp_path)], catch_exceptions=False)
    assert not served
