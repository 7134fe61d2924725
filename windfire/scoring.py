"""Batch scoring: a file of users in, Parquet parts of recommendations out, part by part and resumable."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.errors import ConfigError
from recsys.records import REJECTED, RejectReason
from recsys.storage import fsync_path, read_json, sha256_file, write_json_atomically
from serving.engine import EngineRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from serving.engine import EngineAnswer, Recommender

SCORES_FORMAT: Final = "windfire.scores/1"
SCORES: Final = pa.schema(
    [
        pa.field("line", pa.int64(), nullable=False),  # of the users file, from 1
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("items", pa.list_(pa.string()), nullable=False),  # best first
        pa.field("scores", pa.list_(pa.float64()), nullable=False),  # comparable within one source only
        pa.field("sources", pa.list_(pa.string()), nullable=False),
        pa.field("served_by", pa.string(), nullable=False),
        pa.field("history", pa.int64(), nullable=False),  # items of the history, as given or stored
        pa.field("history_unknown", pa.int64(), nullable=False),  # of these not in the catalog: ignored
        pa.field("truncated", pa.bool_(), nullable=False),  # fewer than n items are eligible
    ]
)
_LONGEST_ID: Final = 120
_RAW: Final = 2_000


@dataclass(frozen=True, slots=True)
class ScoringSettings:
    """What is asked for every user.

    Attributes:
        n: items per user.
        scene: surface of the app, None = all.
        exclude_seen: leave out every item of the history.
        beam: prefixes kept per level; stands here for the record.
        time: UTC microseconds by which availability is judged; part of the settings, so that a resumed run judges
            by the clock of the first.
        batch: users that are decoded together.
        part_rows: lines of the users file per part.
    """

    n: int
    scene: str | None
    exclude_seen: bool
    beam: int
    time: int
    batch: int
    part_rows: int


class UserLine(NamedTuple):
    """One good line: the history is None where it has to be looked up."""

    line: int
    user_id: str
    history: Sequence[str] | None


class Rejection(NamedTuple):
    """One bad line and why."""

    line: int
    reason: RejectReason
    detail: str
    raw: str


@dataclass(slots=True)
class Counts:
    """Lines of the users file: read = scored + rejected + blank."""

    read: int = 0
    scored: int = 0
    rejected: int = 0
    blank: int = 0

    def add(self, other: Counts) -> None:
        """Add another part's counts."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


def score_users(
    recommender: Recommender,
    users: Path,
    out: Path,
    *,
    settings: ScoringSettings,
    histories: Callable[[str], Sequence[str]],
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Score every line of a users file.

    A part is written under a temporary name, flushed and renamed; parts that are there already are not made again.
    `manifest.json` appears when all are done.

    Args:
        recommender: a loaded bundle.
        users: one user_id per line, or JSONL {"user_id": ..., "history": [item_id, ...]}.
        out: directory of part-*.parquet, rejected-*.parquet, plan.json and manifest.json.
        settings: of every request.
        histories: a user's item ids, oldest first; empty for an unknown user.
        progress: called with the number of lines that are done.

    Returns:
        The manifest.

    Raises:
        ConfigError: `out` holds the parts of another users file, bundle or settings.
    """
    started = time.monotonic()
    plan = {
        "format": SCORES_FORMAT,
        "bundle_version": recommender.versions.bundle,
        "catalog_version": recommender.versions.catalog,
        "decoder": recommender.versions.decoder,
        "users_sha256": sha256_file(users),
        "settings": asdict(settings),
    }
    _agree_on_plan(out, plan)
    total = Counts()
    for number, lines in enumerate(_blocks(users, settings.part_rows)):
        part, marker = out / f"part-{number:05d}.parquet", out / f".part-{number:05d}.json"
        if marker.exists():
            counts = Counts(**read_json(marker))
        else:
            good, bad, blank = parse_lines(lines)
            table = _score(recommender, good, settings, histories)
            _write_table(part, table)
            if bad:
                _write_table(out / f"rejected-{number:05d}.parquet", _rejected(users.name, bad))
            counts = Counts(len(lines), len(good), len(bad), blank)
            write_json_atomically(marker, asdict(counts))
        total.add(counts)
        progress(total.read)
    manifest = {**plan, "counts": asdict(total), "seconds": round(time.monotonic() - started, 3)}
    write_json_atomically(out / "manifest.json", manifest)
    return manifest


def planned_time(out: Path, now: int) -> int:
    """The clock of the run that began in `out`, else `now`; UTC microseconds."""
    plan = out / "plan.json"
    return int(read_json(plan)["settings"]["time"]) if plan.is_file() else now


def parse_lines(lines: Sequence[tuple[int, bytes]]) -> tuple[list[UserLine], list[Rejection], int]:
    """Sort lines into good and bad ones.

    Args:
        lines: number and bytes of each.

    Returns:
        good lines, rejections, number of blank lines. A line that begins with '{' is JSON.
    """
    good: list[UserLine] = []
    bad: list[Rejection] = []
    blank = 0
    for number, data in lines:
        if not data.strip():
            blank += 1
            continue
        parsed = _parse(number, data)
        (good if isinstance(parsed, UserLine) else bad).append(parsed)  # type: ignore[arg-type]
    return good, bad, blank


def _parse(number: int, data: bytes) -> UserLine | Rejection:
    raw = data.decode("utf-8", "backslashreplace")[:_RAW]
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        return Rejection(number, RejectReason.BAD_ENCODING, f"line: not UTF-8 at byte {error.start}", raw)
    if not text.startswith("{"):
        return _checked(number, text, None, raw)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is no JSONDecodeError
        return Rejection(number, RejectReason.BAD_SYNTAX, f"line: not JSON: {error}", raw)
    if "user_id" not in value:
        return Rejection(number, RejectReason.MISSING_FIELD, "user_id: absent", raw)
    return _checked(number, value["user_id"], value.get("history"), raw)


def _checked(number: int, user: object, history: object, raw: str) -> UserLine | Rejection:
    if not isinstance(user, str) or not 0 < len(user) <= _LONGEST_ID or not _storable(user):
        detail = f"user_id: not a string of 1 to {_LONGEST_ID} characters without NUL and surrogates"
        return Rejection(number, RejectReason.WRONG_TYPE, detail, raw)
    if history is None:
        return UserLine(number, user, None)
    if not isinstance(history, list) or not all(isinstance(item, str) for item in history):
        return Rejection(number, RejectReason.WRONG_TYPE, "history: not a list of item ids", raw)
    return UserLine(number, user, history)


def _storable(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def _score(
    recommender: Recommender,
    lines: list[UserLine],
    settings: ScoringSettings,
    histories: Callable[[str], Sequence[str]],
) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for begin in range(0, len(lines), settings.batch):
        batch = lines[begin : begin + settings.batch]
        requests = [
            EngineRequest(
                history=histories(line.user_id) if line.history is None else line.history,
                n=settings.n,
                time=settings.time,
                scene=settings.scene,
                exclude_seen=settings.exclude_seen,
            )
            for line in batch
        ]
        answers = recommender.recommend(requests)
        rows += [_row(line, answer) for line, answer in zip(batch, answers, strict=True)]
    return pa.Table.from_pylist(rows, schema=SCORES)


def _row(line: UserLine, answer: EngineAnswer) -> dict[str, Any]:
    return {
        "line": line.line,
        "user_id": line.user_id,
        "items": [item.item_id for item in answer.items],
        "scores": [item.score for item in answer.items],
        "sources": [str(item.source) for item in answer.items],
        "served_by": str(answer.served_by),
        "history": answer.counts.history,
        "history_unknown": answer.counts.history_unknown,
        "truncated": answer.truncated,
    }


def _rejected(source: str, bad: list[Rejection]) -> pa.Table:
    rows = [{"table": "users", "source": source, **rejection._asdict()} for rejection in bad]
    return pa.Table.from_pylist(rows, schema=REJECTED)


def _blocks(users: Path, size: int) -> Iterator[list[tuple[int, bytes]]]:
    with users.open("rb") as file:
        numbered = enumerate(file, start=1)
        while block := list(islice(numbered, size)):
            yield block


def _write_table(path: Path, table: pa.Table) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    pq.write_table(table, temporary, compression="zstd")
    fsync_path(temporary)
    temporary.replace(path)
    fsync_path(path.parent)


def _agree_on_plan(out: Path, plan: dict[str, Any]) -> None:
    path = out / "plan.json"
    if not path.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise ConfigError("the output directory is not empty", field="out", value=str(out), remedy="choose another")
        write_json_atomically(path, plan)
        return
    found = read_json(path)
    for name, value in plan.items():
        if found.get(name) != value:
            raise ConfigError(
                f"{out} holds parts of another run: its {name} is {found.get(name)!r}",
                field=name,
                value=value,
                remedy="choose another --out, or remove the directory to start again",
            )
    for leftover in out.glob(".*.tmp"):
        leftover.unlink()
