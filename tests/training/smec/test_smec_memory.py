"""The memory is first in, first out, and never holds a gradient."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from training.smec.memory import CrossBatchMemory

TABLE = torch.nn.functional.normalize(torch.randn(12, 4, generator=torch.Generator().manual_seed(1)), dim=1)
BATCHES = st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=6, unique=True), max_size=8)


def filled(size: int, batches: list[list[int]]) -> CrossBatchMemory:
    memory = CrossBatchMemory(size, 4)
    for batch in batches:
        memory.push(torch.tensor(batch), TABLE[batch])
    return memory


def held(memory: CrossBatchMemory) -> set[int]:
    return set(memory.state()["rows"].tolist()) - {-1}


@given(st.integers(1, 9), BATCHES)
def test_it_holds_newest_rows_each_once(size: int, batches: list[list[int]]) -> None:
    """Places in the ring are taken over in turn; a row that comes again leaves its older place."""
    ring: list[int] = [-1] * size
    place = 0
    for batch in batches:
        newest = batch[-size:]
        ring = [-1 if row in newest else row for row in ring]
        for row in newest:
            ring[place] = row
            place = (place + 1) % size
    memory = filled(size, batches)
    assert memory.state()["rows"].tolist() == ring
    assert len(memory) == len(held(memory)) == sum(row >= 0 for row in ring)


@given(BATCHES, st.integers(1, 4))
def test_the_nearest_are_those_of_all_it_holds(batches: list[list[int]], count: int) -> None:
    memory = filled(20, batches)
    rows = torch.arange(12)
    found = memory.nearest(rows, TABLE, count)
    inside = held(memory)
    enough = len(inside) > count
    assert (found is not None) == enough
    answers = [] if found is None else found.tolist()
    for row, answer in enumerate(answers):
        others = sorted(inside - {row}, key=lambda other: -float(TABLE[row] @ TABLE[other]))
        assert answer == others[:count]


def test_it_never_holds_a_gradient() -> None:
    memory = CrossBatchMemory(3, 4)
    vectors = TABLE[:2].clone().requires_grad_()
    memory.push(torch.tensor([0, 1]), vectors * 2)
    assert not memory.vectors.requires_grad
    assert memory.vectors.grad_fn is None
    found = memory.nearest(torch.tensor([5]), vectors[:1], 1)
    assert found is not None
    assert not found.requires_grad
    with torch.no_grad():
        vectors.zero_()
    torch.testing.assert_close(memory.vectors[:2], TABLE[:2] * 2)  # a copy


@given(BATCHES, BATCHES)
def test_a_restored_memory_goes_on_as_the_old_one(before: list[list[int]], after: list[list[int]]) -> None:
    whole = filled(7, before + after)
    part = filled(7, before)
    restored = CrossBatchMemory(7, 4)
    restored.restore(part.state(), TABLE)
    for batch in after:
        restored.push(torch.tensor(batch), TABLE[batch])
    assert restored.state()["rows"].tolist() == whole.state()["rows"].tolist()
    rows = torch.arange(12)
    found, expected = restored.nearest(rows, TABLE, 1), whole.nearest(rows, TABLE, 1)
    assert str(found) == str(expected)


def test_without_places_nothing_is_held() -> None:
    memory = filled(0, [[1, 2]])
    assert len(memory) == 0
    assert memory.nearest(torch.tensor([0]), TABLE[:1], 1) is None
