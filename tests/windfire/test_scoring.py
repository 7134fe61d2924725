from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.bundle import Registry, load_decoder
from recsys.errors import ConfigError
from recsys.records import REJECTED
from recsys.storage import read_json
from serving.stages import BundleRecommender
from windfire import scoring
from windfire.scoring import SCORES, ScoringSettings, planned_time, score_users

SETTINGS = ScoringSettings(n=5, scene=None, exclude_seen=True, beam=50, time=1, batch=3, part_rows=4)
KNOWN = {"ann": ["item-01", "item-02"], "bob": ["item-40"]}
LINES = [
    b"ann\n",
    b"nobody\r\n",
    b"\n",
    b'{"user_id": "guest", "history": ["item-03", "gone", "item-04"]}\n',
    b"bob\n",
    b"\xff\xfe\n",
    b'{"user_id": "guest", "history": "item-03"}\n',
    b'{"user_id": 7}\n',
    b'{"history": []}\n',
    b'{"user_id": \n',
    b'{"user_id": "bob"}\n',
    b"u" * 121 + b"\n",
    b'{"user_id": "new", "history": []}',
]


@pytest.fixture
def recommender(tiny_registry: Registry) -> BundleRecommender:
    bundle = tiny_registry.open_current()
    return BundleRecommender(bundle, load_decoder(bundle), beam=50)


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users.txt"
    path.write_bytes(b"".join(LINES))
    return path


def score(
    recommender: BundleRecommender, users: Path, out: Path, settings: ScoringSettings = SETTINGS
) -> dict[str, Any]:
    def histories(user: str) -> Sequence[str]:
        return KNOWN.get(user, [])

    return score_users(recommender, users, out, settings=settings, histories=histories, progress=lambda _: None)


def scores(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("part-*.parquet"))])


def test_every_line_is_scored_rejected_or_blank(recommender: BundleRecommender, users: Path, tmp_path: Path) -> None:
    manifest = score(recommender, users, tmp_path / "out")
    assert manifest["counts"] == {"read": 13, "scored": 6, "rejected": 6, "blank": 1}
    table = scores(tmp_path / "out")
    assert table.schema.equals(SCORES)
    assert table["line"].to_pylist() == [1, 2, 4, 5, 11, 13]
    assert table["user_id"].to_pylist() == ["ann", "nobody", "guest", "bob", "bob", "new"]
    served = table["served_by"].to_pylist()
    assert served == ["nezha", "popular_scene", "nezha", "nezha", "nezha", "popular_scene"]
    assert table["history"].to_pylist() == [2, 0, 3, 1, 1, 0]
    assert table["history_unknown"].to_pylist() == [0, 0, 1, 0, 0, 0]
    assert all(len(set(items)) == 5 for items in table["items"].to_pylist())
    assert not set(table["items"].to_pylist()[2]) & {"item-03", "item-04"}


def test_rejected_lines_say_why(recommender: BundleRecommender, users: Path, tmp_path: Path) -> None:
    score(recommender, users, tmp_path / "out")
    found = sorted((tmp_path / "out").glob("rejected-*.parquet"))
    table = pa.concat_tables([pq.read_table(path) for path in found])
    assert table.schema.equals(REJECTED)
    assert list(zip(table["line"].to_pylist(), table["reason"].to_pylist(), strict=True)) == [
        (6, "bad_encoding"),
        (7, "wrong_type"),
        (8, "wrong_type"),
        (9, "missing_field"),
        (10, "bad_syntax"),
        (12, "wrong_type"),
    ]
    assert set(table["source"].to_pylist()) == {"users.txt"}


def test_the_partition_changes_no_answer(recommender: BundleRecommender, users: Path, tmp_path: Path) -> None:
    score(recommender, users, tmp_path / "small")
    whole = ScoringSettings(n=5, scene=None, exclude_seen=True, beam=50, time=1, batch=100, part_rows=100)
    score(recommender, users, tmp_path / "whole", whole)
    assert scores(tmp_path / "small").drop(["scores"]).equals(scores(tmp_path / "whole").drop(["scores"]))
    assert len(list((tmp_path / "whole").glob("part-*.parquet"))) == 1


class Killed(BaseException):
    """Not an error that anything handles: what runs after it is what runs after a kill."""


def killed(path: Path, table: pa.Table) -> None:
    raise Killed


def test_a_killed_run_goes_on_where_it_stopped(
    recommender: BundleRecommender, users: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(recommender, users, tmp_path / "whole")
    out = tmp_path / "out"
    whole = scoring._write_table
    # A fork with torch's threads would hang; so the third write stops the run instead.
    writes = iter([whole, whole, killed])

    def dies_at_the_third(path: Path, table: pa.Table) -> None:
        next(writes)(path, table)

    with monkeypatch.context() as patched:
        patched.setattr(scoring, "_write_table", dies_at_the_third)
        with pytest.raises(Killed):
            score(recommender, users, out)
    assert not (out / "manifest.json").exists()
    first = (out / "part-00000.parquet").stat().st_mtime_ns
    manifest = score(recommender, users, out)
    assert (out / "part-00000.parquet").stat().st_mtime_ns == first
    assert scores(out).equals(scores(tmp_path / "whole"))
    assert manifest["counts"] == read_json(tmp_path / "whole" / "manifest.json")["counts"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda users, out: users.write_text("someone else\n"), "users_sha256"),
        (lambda users, out: (out / "plan.json").unlink(), "out"),
    ],
    ids=["other users", "foreign directory"],
)
def test_another_run_in_the_same_directory_is_refused(
    recommender: BundleRecommender, users: Path, tmp_path: Path, change: Callable[[Path, Path], None], field: str
) -> None:
    score(recommender, users, tmp_path / "out")
    change(users, tmp_path / "out")
    with pytest.raises(ConfigError) as raised:
        score(recommender, users, tmp_path / "out")
    assert raised.value.field == field


def test_other_settings_in_the_same_directory_are_refused(
    recommender: BundleRecommender, users: Path, tmp_path: Path
) -> None:
    score(recommender, users, tmp_path / "out")
    other = ScoringSettings(n=6, scene=None, exclude_seen=True, beam=50, time=1, batch=3, part_rows=4)
    with pytest.raises(ConfigError, match="another run"):
        score(recommender, users, tmp_path / "out", other)


def test_a_resumed_run_keeps_the_clock(recommender: BundleRecommender, users: Path, tmp_path: Path) -> None:
    assert planned_time(tmp_path / "out", 99) == 99
    score(recommender, users, tmp_path / "out")
    assert planned_time(tmp_path / "out", 99) == 1


def test_an_empty_file(recommender: BundleRecommender, tmp_path: Path) -> None:
    (tmp_path / "users.txt").touch()
    manifest = score(recommender, tmp_path / "users.txt", tmp_path / "out")
    assert manifest["counts"] == {"read": 0, "scored": 0, "rejected": 0, "blank": 0}


@pytest.mark.parametrize(
    "line",
    [
        b'{"user_id": "\\ud800"}',
        b'{"user_id": ""}',
        b'{"user_id": "a\\u0000"}',
        b'{"user_id": ' + b"1" * 5_000 + b"}",
        b'{"user_id": "bob", "history": ["\\ud800", ""]}',
        b"[" * 10,
    ],
)
def test_odd_lines_do_not_end_the_run(recommender: BundleRecommender, tmp_path: Path, line: bytes) -> None:
    (tmp_path / "users.txt").write_bytes(b"\xef\xbb\xbfann\n" + line + b"\n" + b'{"a":' * 100_000)
    counts = score(recommender, tmp_path / "users.txt", tmp_path / "out")["counts"]
    assert counts["read"] == counts["scored"] + counts["rejected"] == 3
    assert scores(tmp_path / "out")["user_id"].to_pylist()[0] == "ann"
