"""Simulate a world into a directory of tables, piece by piece and on several processes."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import pyarrow.parquet as pq

from recsys.datasets.marketplace.log import block_events
from recsys.datasets.marketplace.settings import DAY, LAST_DAY, START, WorldSize
from recsys.datasets.marketplace.texts import CHUNK, items_table, users_table
from recsys.datasets.marketplace.world import WORLD_FILE, Marketplace
from recsys.errors import ConfigError
from recsys.records import REJECTED, TABLES, TableCounts, TablesManifest, tables_place
from recsys.storage import staged_directory, write_json_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pyarrow as pa

WORLD_FORMAT: Final = "windfire.world/1"
_REPEATING = ["user_id", "item_id", "scene", "action", "request_id", "position", "category_path", "brand"]


@dataclass(frozen=True, slots=True)
class _Span:
    """What to write, and where.

    Attributes:
        size, seed: the world.
        from_day, days: the days whose events are written.
        directory: the staged tables.
    """

    size: WorldSize
    seed: int
    from_day: int
    days: int
    directory: Path

    @property
    def end(self) -> int:
        """Microseconds at which the last day ends."""
        return START + (self.from_day + self.days) * DAY


def simulate(
    size: WorldSize,
    seed: int,
    out: Path,
    *,
    from_day: int = 0,
    days: int | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> TablesManifest:
    """Write the events of some days of a world, with the items and users that exist when they end, as tables.

    The tables depend on size, seed and days only, not on `workers`. The events of days 0 to 9 are those of days
    0 to 4 and those of days 5 to 9, row by row, so that a later call with `from_day` is a daily increment. Memory
    is bounded by the catalog's arrays (about 150 bytes per item) and one block of users per process.

    Args:
        size: one of `SIZES` or your own.
        seed: which world.
        out: the directory of the tables; replaced when the simulation is complete.
        from_day: first day to write.
        days: number of days; `size.days` when None.
        workers: processes.
        progress: called with (pieces done, pieces in all).

    Raises:
        ConfigError: a number out of range, or `out` is a directory that holds something else than tables.
    """
    began = time.perf_counter()
    days = size.days if days is None else days
    _check(from_day, days, workers)
    out = tables_place(out)
    market = Marketplace(size, seed)
    counts: Counter[str] = Counter()
    with staged_directory(out) as staged:
        for name in TABLES:
            (staged / name).mkdir()
        span = _Span(size, seed, from_day, days, staged)
        pieces = _pieces(market, span)
        for done, piece in enumerate(_write_all(market, span, pieces, workers), start=1):
            counts.update(piece)
            if progress is not None:
                progress(done, len(pieces))
        pq.write_table(REJECTED.empty_table(), staged / "rejected" / "part-00000.parquet")
        world = {"format": WORLD_FORMAT, "size": asdict(size), "seed": seed, "from_day": from_day, "days": days}
        write_json_atomically(staged / WORLD_FILE, world)
        rows = {name: counts.pop(f"{name}_rows", 0) for name in TABLES}
        manifest = TablesManifest(
            dataset=f"marketplace-{size.name}",
            time_is_order=False,
            sources={},
            counts={name: TableCounts(read=count, written=count, rejected=0) for name, count in rows.items()},
            notes=dict(sorted(counts.items())),
            seconds=round(time.perf_counter() - began, 3),
        )
        manifest.save(staged)
    return manifest


def _check(from_day: int, days: int, workers: int) -> None:
    limits = {"from_day": (from_day, 0), "days": (days, 1), "workers": (workers, 1)}
    for field, (value, least) in limits.items():
        if value < least:
            raise ConfigError(f"{field} is too small", field=field, value=value, remedy=f"choose {least} or more")
    if from_day + days > LAST_DAY:
        raise ConfigError(
            f"the world ends after day {LAST_DAY}", field="days", value=days, remedy="choose fewer or earlier days"
        )


def _pieces(market: Marketplace, span: _Span) -> list[tuple[str, int]]:
    """All that there is to write: chunks of items and blocks of users."""
    chunks = -(-market.catalog.created_before(span.end - 1) // CHUNK)
    return [*(("items", chunk) for chunk in range(chunks)), *(("users", block) for block in range(span.size.blocks))]


def _write_all(
    market: Marketplace, span: _Span, pieces: list[tuple[str, int]], workers: int
) -> Iterator[dict[str, int]]:
    """Write every piece; yields the counts of each as it is done."""
    if workers == 1:
        for piece in pieces:
            yield _write_piece(market, span, piece)
        return
    # spawn, because the threads of pyarrow do not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(pieces)), mp_context=context) as pool:
        for future in as_completed([pool.submit(_write_in_process, span, piece) for piece in pieces]):
            yield future.result()


@lru_cache(maxsize=1)
def _market(size: WorldSize, seed: int) -> Marketplace:
    """A worker process builds its world once."""
    return Marketplace(size, seed)


def _write_in_process(span: _Span, piece: tuple[str, int]) -> dict[str, int]:
    return _write_piece(_market(span.size, span.seed), span, piece)


def _write_piece(market: Marketplace, span: _Span, piece: tuple[str, int]) -> dict[str, int]:
    kind, number = piece
    if kind == "items":
        until = min((number + 1) * CHUNK, market.catalog.created_before(span.end - 1))
        items = items_table(market, number * CHUNK, until)
        _write(items, span.directory / "items", number)
        return {"items_rows": items.num_rows, "items_without_text": items["text"].null_count}
    users = users_table(market, number, span.end)
    _write(users, span.directory / "users", number)
    events, counts = block_events(market, number, span.from_day, span.days)
    _write(events, span.directory / "events", number)
    return {"users_rows": users.num_rows, "events_rows": events.num_rows, **counts}


def _write(table: pa.Table, directory: Path, number: int) -> None:
    pq.write_table(
        table,
        directory / f"part-{number:05d}.parquet",
        compression="zstd",
        use_dictionary=[name for name in _REPEATING if name in table.column_names],
    )
