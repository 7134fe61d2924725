"""Items held out of everything that is fitted, and the log without them."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from benchmarks.measure import run_measured
from offline.settings import OfflineSettings
from recsys.datasets.prepared import PreparedData
from recsys.errors import ConfigError
from recsys.records import POSITIVE_ACTIONS, TABLES, TablesManifest
from recsys.storage import read_json, sha256_file, sha256_parts, staged_directory, write_json_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

_LEAST: Final = 3  # events of a user with which leave-one-out holds any of them out


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Two disjoint sets of items that nothing is fitted on.

    Attributes:
        measured: (m,) int64 ascending indices, in the full catalogue, of those that figures are about.
        choice: (m,) likewise of those that the cold prior is chosen by.
    """

    measured: Ints
    choice: Ints

    @property
    def every(self) -> Ints:
        """(2 m,) both, ascending."""
        return np.sort(np.concatenate([self.measured, self.choice]))


def hold_out(popularity: npt.NDArray[np.integer], share: float, rng: np.random.Generator) -> HeldOut:
    """Draw items from every stratum of popularity alike, so that their share of events is their share of items.

    Items are sorted by popularity and cut into share * I runs of about equal length; each gives one item to either set.

    Args:
        popularity: (I,) events of every item.
        share: of the items in either set, in (0, 1/2].
        rng: draws.

    Raises:
        ConfigError: a share out of range, or too few items for it.
    """
    if not 0 < share <= 1 / 2:
        raise ConfigError("must lie in (0, 0.5]", field="share", value=share, remedy="hold out 0.02")
    order = np.lexsort((np.arange(len(popularity)), -popularity))
    count = min(round(len(order) * share), len(order) // 2)  # a stratum holds two items at least
    if count < 1:
        raise ConfigError(
            f"no item is held out of {len(order)}", field="share", value=share, remedy="choose a larger share"
        )
    strata = np.array_split(order, count)
    drawn = np.array([rng.choice(stratum, size=2, replace=False) for stratum in strata], dtype=np.int64)
    return HeldOut(np.sort(drawn[:, 0]), np.sort(drawn[:, 1]))


def write_without(
    tables: Path, out: Path, held_ids: pa.Array, positive: Sequence[str] = tuple(map(str, POSITIVE_ACTIONS))
) -> dict[str, int]:
    """Write tables without some items, their events, and users whose events would all be trained on then.

    Leave-one-out keeps the last two of at least three events from training. A user whom fewer are left would be trained
    on with an event that is measured, and is left out whole.

    Args:
        tables: directory of `windfire import`.
        out: directory to write.
        held_ids: item ids.
        positive: actions whose events are trained on.

    Returns:
        events and items that were left out, and users.
    """
    items, events = (pq.read_table(tables / name) for name in ("items", "events"))
    held = pc.is_in(events["item_id"], held_ids)
    kept = events.filter(pc.invert(held))
    liked = kept.filter(pc.is_in(kept["action"], pa.array(positive)))  # what sequences are made of
    counts = liked.group_by("user_id").aggregate([("event_id", "count_distinct")])
    short = counts.filter(pc.less(counts["event_id_count_distinct"], _LEAST))["user_id"]
    kept = kept.filter(pc.invert(pc.is_in(kept["user_id"], short)))
    known = items.filter(pc.invert(pc.is_in(items["item_id"], held_ids)))
    with staged_directory(out) as folder:
        for name, table in (("items", known), ("events", kept)):
            (folder / name).mkdir()
            pq.write_table(table.cast(TABLES[name]), folder / name / "part-00000.parquet")
        TablesManifest.load(tables).save(folder)  # of the import: offline jobs count for themselves
    return {
        "items": items.num_rows - known.num_rows,
        "events": int(pc.sum(held).as_py() or 0),
        "short_users": len(short),
    }


@dataclass(frozen=True, slots=True, eq=False)
class ColdData:
    """A data set before and after its held-out items were taken away.

    Attributes:
        full: everything; its cases are what is measured.
        data: what was fitted on.
        held: indices in `full`.
        work: the work directory of `data`.
        counts: what was left out; `write_without`.
    """

    full: PreparedData
    data: PreparedData
    held: HeldOut
    work: Path
    counts: dict[str, int]


def prepare(
    full_work: Path,
    tables: Path,
    folder: Path,
    *,
    share: float,
    seed: int,
    offline: Mapping[str, Any],
    say: Callable[[str], None],
) -> ColdData:
    """Take items away and run the offline jobs on the rest, unless this was done with the same inputs.

    Args:
        full_work: work directory of the whole data set, split by leave-one-out.
        tables: those that it was made of.
        folder: for the tables and the work directory of the rest.
        share: see `hold_out`.
        seed: of the draw.
        offline: settings of the offline jobs.
        say: told in one line what was done.

    Raises:
        ConfigError: see `hold_out`.
        CommandError: a step failed.
    """
    full = PreparedData.load(full_work)
    events = np.bincount(full.sequences.items, minlength=len(full.codes))
    held = hold_out(events, share, np.random.default_rng(seed))
    sources = [sha256_file(file) for name in ("items", "events") for file in sorted((tables / name).glob("*.parquet"))]
    key = sha256_parts([*sources, json.dumps([share, seed, offline], sort_keys=True)])
    marker, work = folder / "preparation.json", folder / "prepared"
    if not marker.exists() or read_json(marker)["key"] != key:
        folder.mkdir(parents=True, exist_ok=True)
        held_ids = full.items["item_id"].take(pa.array(held.every))
        positive = OfflineSettings.model_validate(offline).positive_actions
        counts = write_without(tables, folder / "tables", held_ids, positive)
        (folder / "offline.yaml").write_text(yaml.safe_dump(dict(offline)))
        step = ["offline", "run", "--data", str(folder / "tables"), "--out", str(work)]
        command = [sys.executable, "-m", "windfire", *step, "--config", str(folder / "offline.yaml")]
        spent = run_measured(command, log=folder / "offline.log")
        say(f"{folder.name}: {counts}, windfire offline, {spent.cpu_seconds:.0f} CPU s")
        write_json_atomically(marker, {"key": key, "counts": counts})
    return ColdData(full, PreparedData.load(work), held, work, read_json(marker)["counts"])
