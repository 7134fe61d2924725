"""KuaiRand: a short-video log whose tabs are scenes."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc

from recsys.datasets.importing.assembly import SourceDataset, SourceTable
from recsys.datasets.importing.chunks import Chunk, Reading
from recsys.datasets.importing.delimited import DelimitedFile
from recsys.datasets.importing.plans import Field, TablePlan
from recsys.datasets.importing.times import time_converter
from recsys.datasets.importing.values import BadValueError, categorical, string_list, text
from recsys.errors import InputError
from recsys.records import EVENTS, ITEMS, Action

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

DISLIKE: Final = "dislike"
_SIGNALS: Final = ("is_hate", "is_like", "is_click")  # strongest first
_ACTIONS: Final = (DISLIKE, Action.LIKE.value, Action.CLICK.value, Action.IMPRESSION.value)
_KEPT: Final = (
    *_SIGNALS, "is_follow", "is_comment", "is_forward", "long_view", "play_time_ms", "duration_ms",
    "profile_stay_time", "comment_stay_time", "is_profile_enter", "is_rand",
)  # fmt: skip
_VIDEO: Final = (
    "author_id", "video_type", "upload_type", "visible_status", "video_duration",
    "server_width", "server_height", "music_id", "music_type",
)  # fmt: skip


def open_kuairand(source: Path) -> SourceDataset:
    """Open a folder of log_standard*.csv[.gz] and video_features_basic*.csv[.gz].

    Each row is one event with its strongest signal as the action: dislike, like, click, else impression; all
    signals that are not zero are attributes. Rows that are the same in every column have the same event id. The
    statistic features cover the whole month and so know the future: they are not read.

    Raises:
        InputError: a file is absent.
    """
    logs = tuple(KuaiRandLog(path) for path in _files(source, "log_standard*.csv*"))
    videos = tuple(DelimitedFile(path, path.name) for path in _files(source, "video_features_basic*.csv*"))
    events = TablePlan(
        EVENTS,
        (
            Field("event_id", text(), "row_id", required=True),
            Field("user_id", text(), "user_id", required=True),
            Field("item_id", text(), "video_id", required=True),
            Field("time", time_converter("ms"), "time_ms", required=True),
            Field("action", categorical(_strongest), "signals", required=True),
            Field("scene", categorical(_scene), "tab", required=True),
        ),
        attributes=_KEPT,
    )
    items = TablePlan(
        ITEMS,
        (
            Field("item_id", text(), "video_id", required=True),
            Field("category_path", string_list(","), "tag"),
            Field("created_at", time_converter("iso8601"), "upload_dt"),
        ),
        attributes=_VIDEO,
    )
    return SourceDataset(events=SourceTable(logs, events), items=SourceTable(videos, items))


def _files(source: Path, pattern: str) -> list[Path]:
    found = sorted(source.glob(pattern))
    if not found:
        raise InputError(
            f"no file named {pattern}", field="source", value=str(source), remedy="name the data set's folder"
        )
    return found


def _strongest(signals: str) -> str:
    if set(signals) - {"0", "1"}:
        raise BadValueError(signals, f"the signals {', '.join(_SIGNALS)} as 0 or 1 each")
    return _ACTIONS[(signals + "1").index("1")]


def _scene(tab: str) -> str:
    if not tab.isdecimal():
        raise BadValueError(tab, "a tab's number")
    return f"tab{tab}"


@dataclass(frozen=True, slots=True)
class KuaiRandLog:
    """A standard log with `row_id`, a hash of the row, and `signals`, a digit each of hate, like and click."""

    path: Path
    open_schema: bool = False

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def columns(self) -> list[str]:
        """The columns that the rows have."""
        return [*self._file().columns(), "row_id", "signals"]

    def chunks(self, wanted: Sequence[str], reading: Reading) -> Iterator[Chunk]:
        """Read the wanted columns; see `RowFile.chunks`."""
        stored = dict.fromkeys([name for name in wanted if name not in {"row_id", "signals"}] + list(_SIGNALS))
        for chunk in self._file().chunks(list(stored), reading):
            rows = range(len(chunk.lines))
            ids = pa.array([blake2b(chunk.raw(row).encode(), digest_size=12).hexdigest() for row in rows], pa.string())
            signals = pc.binary_join_element_wise(*(chunk.columns[name] for name in _SIGNALS), "")
            kept = {name: _without_zeros(chunk.columns[name]) for name in stored if name in _KEPT}
            columns = {**chunk.columns, **kept, "row_id": ids, "signals": signals}
            yield Chunk(columns, chunk.lines, chunk.raw, chunk.rejected)

    def _file(self) -> DelimitedFile:
        return DelimitedFile(self.path, self.name)


def _without_zeros(column: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(column, "0"), pa.scalar(None, pa.string()), column)
