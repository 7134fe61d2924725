from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving.slate import _SET, Slate

items = st.lists(st.integers(0, 40), max_size=40)


@given(st.lists(st.integers(0, 40), unique=True), items, st.lists(st.integers(0, 40), unique=True), st.integers(0, 20))
def test_few_and_many_excluded_items_leave_the_same(
    offered: list[int], excluded: list[int], chosen: list[int], room: int
) -> None:
    """The excluded items of the second slate are so many that they are looked up in another way."""
    more = [*excluded, *range(100, 100 + _SET + 1)]
    scores = np.linspace(1, 0, len(offered))
    slates = [
        Slate(len(chosen) + room, None, np.array(hidden, dtype=np.int32), chosen[:], [1.0] * len(chosen), ["first"])
        for hidden in (excluded, more)
    ]
    for slate in slates:
        slate.add(np.array(offered, dtype=np.int32), scores, "second")
    new = [item for item in offered if item not in {*excluded, *chosen}]
    assert [slate.items for slate in slates] == [[*chosen, *new[:room]]] * 2
    assert slates[0].scores == slates[1].scores
