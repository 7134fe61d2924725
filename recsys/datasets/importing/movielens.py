"""MovieLens: ratings.csv, movies.csv and, where it is there, tags.csv."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from recsys.datasets.importing.assembly import SourceDataset, SourceTable
from recsys.datasets.importing.chunks import Chunk
from recsys.datasets.importing.delimited import DelimitedFile
from recsys.datasets.importing.plans import Field, TablePlan
from recsys.datasets.importing.times import time_converter
from recsys.datasets.importing.values import BadValueError, categorical, exact_decimal, string_list, text
from recsys.errors import InputError
from recsys.records import EVENTS, ITEMS, Action

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from recsys.datasets.importing.chunks import Reading

LIKED_FROM: Final = 4  # stars
RATING: Final = "rating"
_NO_GENRES: Final = "(no genres listed)"


def open_movielens(source: Path) -> SourceDataset:
    """Open a folder of MovieLens files; 4 stars and more are a `like`, fewer a `rating`.

    Raises:
        InputError: ratings.csv or movies.csv is absent, or tags.csv lacks a column.
    """
    for name in ("ratings.csv", "movies.csv"):
        if not (source / name).is_file():
            raise InputError(
                f"{name} is absent", field="source", value=str(source), remedy="name the data set's folder"
            )
    tags = source / "tags.csv"
    if tags.is_file():
        there = DelimitedFile(tags, tags.name).columns()
        for name in ("movieId", "tag") if there else ():  # an empty file is no fault
            if name not in there:
                raise InputError(
                    f"tags.csv has no such column; its columns are: {', '.join(there)}",
                    field="column",
                    value=name,
                    remedy="copy tags.csv again, or leave it out",
                )
    events = TablePlan(
        EVENTS,
        (
            Field("user_id", text(), "userId", required=True),
            Field("item_id", text(), "movieId", required=True),
            Field("time", time_converter("s"), "timestamp", required=True),
            Field("action", categorical(_action), "rating", required=True),
        ),
        attributes=("rating",),
    )
    items = TablePlan(
        ITEMS,
        (
            Field("item_id", text(), "movieId", required=True),
            Field("title", text(), "title"),
            Field("category_path", string_list("|"), "genres"),
        ),
        attributes=("tags",),
    )
    ratings = DelimitedFile(source / "ratings.csv", "ratings.csv")
    return SourceDataset(
        events=SourceTable((ratings,), events),
        items=SourceTable((MoviesFile(source / "movies.csv", tags),), items),
        unique_event_ids=True,
    )


def _action(rating: str) -> str:
    stars = exact_decimal(rating, "a number of stars")
    if not 0 <= stars <= 5:
        raise BadValueError(rating, "between 0 and 5 stars")
    return Action.LIKE.value if stars >= LIKED_FROM else RATING


@dataclass(frozen=True, slots=True)
class MoviesFile:
    """movies.csv with each movie's distinct tags as one more column.

    Tags become an attribute and not text: they are what users wrote later, so they stay out of what is embedded.

    Attributes:
        path: movies.csv.
        tags: tags.csv, held in memory; may be absent.
    """

    path: Path
    tags: Path
    open_schema: bool = False

    @property
    def paths(self) -> tuple[Path, ...]:
        """movies.csv, and tags.csv where it is there."""
        return (self.path, self.tags) if self.tags.is_file() else (self.path,)

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def columns(self) -> list[str]:
        """The columns that the rows have."""
        return [*self._file().columns(), "tags"]

    def chunks(self, wanted: Sequence[str], reading: Reading) -> Iterator[Chunk]:
        """Read movies.csv; see `RowFile.chunks`."""
        tags = self._tags(reading)
        for chunk in self._file().chunks([name for name in wanted if name != "tags"], reading):
            genres = [None if kind == _NO_GENRES else kind for kind in _values(chunk, "genres")]
            added = {"genres": genres, "tags": [tags.get(movie or "") for movie in _values(chunk, "movieId")]}
            yield Chunk({**chunk.columns, **added}, chunk.lines, chunk.raw, chunk.rejected)

    def _file(self) -> DelimitedFile:
        return DelimitedFile(self.path, self.name)

    def _tags(self, reading: Reading) -> dict[str, str]:
        """Movie to its tags in lower case, in order of first use, with commas between."""
        found: dict[str, dict[str, None]] = {}
        if self.tags.is_file():
            for chunk in DelimitedFile(self.tags, self.tags.name).chunks(["movieId", "tag"], reading):
                for movie, tag in zip(_values(chunk, "movieId"), _values(chunk, "tag"), strict=True):
                    found.setdefault(movie or "", {})[(tag or "").strip().lower()] = None
        return {movie: ", ".join(tag for tag in tags if tag) for movie, tags in found.items()}


def _values(chunk: Chunk, name: str) -> list[str | None]:
    column = chunk.columns[name]
    return column if isinstance(column, list) else column.to_pylist()
