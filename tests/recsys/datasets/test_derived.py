from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recsys.datasets.derived import ForeignIds, derive_work
from recsys.datasets.prepared import PreparedData, read_job
from recsys.errors import DataError


def foreign_ids(names: list[str]) -> ForeignIds:
    codes = np.stack([np.arange(len(names)) // 8, np.arange(len(names)) % 8], axis=1).astype(np.int32)
    return ForeignIds(names, codes, (len(names) // 8 + 1, 8), "imported-x")


def test_all_items_stay_as_they_are_but_for_their_codes(tiny_work: Path, tmp_path: Path) -> None:
    before = PreparedData.load(tiny_work)
    ids = foreign_ids(before.items["item_id"].to_pylist())
    kept = derive_work(tiny_work, tmp_path / "work", ids)
    after = PreparedData.load(tmp_path / "work")
    assert kept == (48, 0, len(before.sequences.items), 0)
    np.testing.assert_array_equal(after.codes, ids.codes)
    assert (after.tokenizer_version, after.codebook_sizes) == ("imported-x", (7, 8))
    assert after.items.equals(before.items)
    for name in ("text", "collaborative", "train_counts"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    for name in ("items", "offsets", "times", "train_end", "valid_index", "test_index"):
        np.testing.assert_array_equal(getattr(after.sequences, name), getattr(before.sequences, name))
    for job in ("popularity", "item_to_item"):
        assert read_job(tmp_path / "work", job).num_rows == read_job(tiny_work, job).num_rows


@pytest.mark.parametrize("seed", range(5))
def test_items_without_a_semantic_id_leave_every_job(tiny_work: Path, tmp_path: Path, seed: int) -> None:
    before = PreparedData.load(tiny_work)
    names = before.items["item_id"].to_pylist()
    chosen = np.sort(np.random.default_rng(seed).permutation(48)[:30])
    kept = derive_work(tiny_work, tmp_path / "work", foreign_ids([*(names[item] for item in chosen), "zz-unknown"]))
    after = PreparedData.load(tmp_path / "work")
    assert (kept.items, kept.dropped) == (30, 18)
    assert after.items["item_id"].to_pylist() == [names[item] for item in chosen]
    np.testing.assert_array_equal(after.items["item_index"].to_numpy(), np.arange(30))
    np.testing.assert_array_equal(after.text, before.text[chosen])
    np.testing.assert_array_equal(after.train_counts, before.train_counts[chosen])
    stays = np.isin(before.sequences.items, chosen)
    assert kept.events == stays.sum() == len(after.sequences.items)
    assert kept.dropped_events == (~stays).sum()
    np.testing.assert_array_equal(chosen[after.sequences.items], before.sequences.items[stays])
    np.testing.assert_array_equal(after.sequences.times, before.sequences.times[stays])
    for part in ("valid", "test"):
        assert targets(after, part, chosen) == {
            user: (target, history)
            for user, (target, history) in targets(before, part, np.arange(48), among=chosen).items()
        }
    for user in range(before.sequences.users):
        wanted = before.sequences.training(user)
        assert chosen[after.sequences.training(user)].tolist() == wanted[np.isin(wanted, chosen)].tolist()
    for job, columns in {"popularity": ["item_index"], "item_to_item": ["item_index", "neighbour"]}.items():
        old, new = read_job(tiny_work, job), read_job(tmp_path / "work", job)
        inside = np.all([np.isin(old[column].to_numpy(), chosen) for column in columns], axis=0)
        for column in columns:
            np.testing.assert_array_equal(chosen[new[column].to_numpy()], old[column].to_numpy()[inside])


def targets(
    data: PreparedData, part: str, chosen: np.ndarray, among: np.ndarray | None = None
) -> dict[int, tuple[int, list[int]]]:
    """User to target and history in old indices; those whose target, and of histories those items, are among some."""
    some = chosen if among is None else among
    found = zip(*data.sequences.targets(part), strict=True)
    named = {int(user): (int(chosen[target]), chosen[history].tolist()) for user, history, target in found}
    limited = {
        user: (target, [item for item in history if item in some])
        for user, (target, history) in named.items()
        if target in some
    }
    return {user: (target, history) for user, (target, history) in limited.items() if history}


def test_a_catalogue_without_any_semantic_id_is_refused(tiny_work: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no item of the catalogue.*it names \['0', '1'\]"):
        derive_work(tiny_work, tmp_path / "work", foreign_ids(["0", "1"]))
    assert not (tmp_path / "work").exists()
