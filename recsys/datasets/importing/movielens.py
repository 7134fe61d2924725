"""MovieLens: ratings.csv, movies.csv and, where it is there, tags.csv."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from recsys.datasets.importing.amazon import describe
from recsys.datasets.importing.assembly import SourceDataset, SourceTable
from recsys.datasets.importing.chunks import Chunk, Reading
from recsys.datasets.importing.delimited import DelimitedFile
from recsys.datasets.importing.plans import Field, TablePlan
from recsys.datasets.importing.times import time_converter
from recsys.datasets.importing.values import BadValueError, categorical, exact_decimal, string_list, text
from recsys.errors import InputError
from recsys.records import EVENTS, ITEMS, Action

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

LIKED_FROM: Final = 4  # stars
RATING: Final = "rating"
_NO_GENRES: Final = "(no genres listed)"


def open_movielens(source: Path) -> SourceDataset:
    """Open a folder of MovieLens files; 4 stars and more are a `like`, fewer a `rating`.

    Raises:
        InputError: ratings.csv or movies.csv is absent.
    """
    for name in ("ratings.csv", "movies.csv"):
        if not (source / name).is_file():
            raise InputError(
                f"{name} is absent", field="source", value=str(source), remedy="name the data set's folder"
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
            Field("text", text(), "text"),
        ),
        attributes=("tags",),
    )
    ratings = DelimitedFile(source / "ratings.csv", "ratings.csv")
    return SourceDataset(
        events=SourceTable((ratings,), events),
        items=SourceTable((MoviesFile(source / "movies.csv", source / "tags.csv"),), items),
        unique_event_ids=True,
    )


def _action(rating: str) -> str:
    stars = exact_decimal(rating, "a number of stars")
    if not 0 <= stars <= 5:
        raise BadValueError(rating, "between 0 and 5 stars")
    return Action.LIKE.value if stars >= LIKED_FROM else RATING


@dataclass(frozen=True, slots=True)
class MoviesFile:
    """movies.csv with the text that describes a movie, and its distinct tags as one column.

    The text is title and genres alone: tags are what users wrote later, so they stay out of what is embedded.

    Attributes:
        path: movies.csv.
        tags: tags.csv, held in memory; may be absent.
    """

    path: Path
    tags: Path
    open_schema: bool = False

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def columns(self) -> list[str]:
        """The columns that the rows have."""
        return [*self._file().columns(), "text", "tags"]

    def chunks(self, wanted: Sequence[str], reading: Reading) -> Iterator[Chunk]:
        """Read movies.csv; see `RowFile.chunks`."""
        tags = self._tags(Reading(reading.limits))
        for chunk in self._file().chunks([name for name in wanted if name not in {"text", "tags"}], reading):
            ids, titles, genres = (_values(chunk, name) for name in ("movieId", "title", "genres"))
            kinds = [None if kind == _NO_GENRES else kind for kind in genres]
            texts = [
                describe(title, kind and kind.replace("|", ", ")) for title, kind in zip(titles, kinds, strict=True)
            ]
            added = {"genres": kinds, "text": texts, "tags": [tags.get(movie or "") for movie in ids]}
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
