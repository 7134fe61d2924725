from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import DataError
from recsys.semantic_ids.plot import plot_sids
from recsys.semantic_ids.quality import measure_sids


def test_the_numbers_of_a_small_set_by_hand() -> None:
    codes = np.array([[0, 0], [0, 1], [0, 1], [2, 0]], np.int32)
    found = measure_sids(codes, (4, 2), categories=["a", "a", "b", None])
    first, second = found.levels
    assert (found.items, found.distinct, found.colliding, found.largest_bucket) == (4, 3, 2, 2)
    assert (first.size, first.used, first.prefixes, first.children_mean, first.children_max) == (4, 2, 2, 2.0, 2)
    assert first.entropy == pytest.approx(-0.75 * np.log2(0.75) - 0.25 * np.log2(0.25))
    assert first.evenness == pytest.approx(2**first.entropy / 4)
    assert (second.prefixes, second.children_mean, second.children_max) == (3, 1.5, 2)
    assert first.purity == pytest.approx(2 / 3)
    assert second.purity == pytest.approx(1 / 2)
    assert (first.kept, first.unexplained, found.reconstruction_error) == (None, None, None)


@given(st.integers(0, 10_000), st.integers(2, 25))
def test_all_shares_equal_a_count_in_plain_python(seed: int, items: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 3, (items, 2)).astype(np.int32)
    vectors = rng.standard_normal((items, 4)).astype("f4")
    names = [str(name) for name in rng.integers(0, 3, items)]
    near = min(3, items - 1)
    found = measure_sids(
        codes, (3, 3), vectors=vectors, reconstructed=vectors * np.float32(0.5), categories=names, neighbours=near
    )
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T - 9 * np.eye(items)
    total = ((vectors - vectors.mean(0)) ** 2).sum()
    assert found.reconstruction_error == pytest.approx((vectors**2).sum() / 4 / total, rel=1e-4)
    for depth, level in enumerate(found.levels, start=1):
        prefixes = [tuple(row[:depth]) for row in codes.tolist()]
        members: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for item, prefix in enumerate(prefixes):
            members[prefix].append(item)
        pairs = [(item, other) for item in range(items) for other in np.argsort(-cosine[item])[:near]]
        same = [prefixes[a] == prefixes[b] for a, b in pairs]
        chance = [(len(members[prefix]) - 1) / (items - 1) for prefix in prefixes]
        inside = sum(((vectors[rows] - vectors[rows].mean(0)) ** 2).sum() for rows in members.values())
        crowds = [[names[item] for item in rows] for rows in members.values() if len(rows) > 1]
        best = sum(max(crowd.count(name) for name in crowd) for crowd in crowds)
        purity = best / max(sum(map(len, crowds)), 1)
        assert level.kept == pytest.approx(np.mean(same))
        assert level.kept_chance == pytest.approx(np.mean(chance))
        assert level.unexplained == pytest.approx(inside / total, abs=1e-5)
        assert (level.purity or 0) == pytest.approx(purity)


def test_copies_of_an_item_do_not_push_it_into_its_own_list() -> None:
    vectors = np.ones((6, 3), np.float32)
    codes = np.arange(6, dtype=np.int32)[:, None]
    assert measure_sids(codes, (6,), vectors=vectors, neighbours=2).levels[0].kept == 0


def test_unfit_codes_are_refused() -> None:
    with pytest.raises(DataError, match="no semantic IDs"):
        measure_sids(np.empty((0, 2), np.int32), (4, 4))
    with pytest.raises(DataError, match="outside"):
        measure_sids(np.array([[4]], np.int32), (4,))


def test_the_plots_are_svg_with_two_panels_per_level() -> None:
    codes = np.random.default_rng(0).integers(0, 200, (500, 3)).astype(np.int32)
    root = ET.fromstring(plot_sids(codes, (200, 200, 200)))
    space = "{http://www.w3.org/2000/svg}"
    panels = root.findall(f"{space}g")
    assert len(panels) == 6
    assert all(len(panel.findall(f"{space}rect")) >= 1 for panel in panels)
