from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recsys.datasets.prepared import PreparedData, Sequences
from training.recommender.examples import BatchSampler, make_windows


def sequences_of(lengths: list[int]) -> Sequences:
    total = sum(lengths)
    none = np.full(len(lengths), -1, np.int32)
    return Sequences(
        np.asarray(lengths, dtype=object),
        np.cumsum([0, *lengths]).astype(np.int64),
        np.arange(total, dtype=np.int32),
        np.arange(total, dtype=np.int64),
        np.asarray(lengths, np.int32),
        none,
        none,
    )


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(1, 12))
def test_every_training_event_is_a_target_once(lengths: list[int], longest: int) -> None:
    windows = make_windows(sequences_of(lengths), longest)
    targets = [
        event
        for start, length, first in zip(windows.start, windows.length, windows.first_target, strict=True)
        for event in range(start + first, start + length)
    ]
    assert sorted(targets) == list(range(sum(lengths)))
    assert (windows.length <= longest).all()


def test_a_step_does_not_depend_on_where_the_stream_began(tiny_data: PreparedData) -> None:
    sampler = BatchSampler(tiny_data.sequences, max_history=8, tokens=64, seed=3)
    stream = sampler.batches_from(0)
    batches = [next(stream) for _ in range(60)]
    late = next(BatchSampler(tiny_data.sequences, max_history=8, tokens=64, seed=3).batches_from(57))
    np.testing.assert_array_equal(batches[57].items, late.items)
    np.testing.assert_array_equal(batches[57].positions, late.positions)


def test_an_epoch_covers_every_event(tiny_data: PreparedData) -> None:
    sampler = BatchSampler(tiny_data.sequences, max_history=50, tokens=128, seed=0)
    wanted = int(tiny_data.sequences.train_end.sum())
    seen: list[int] = []
    stream = sampler.batches_from(0)
    while len(seen) < wanted:
        batch = next(stream)
        seen += batch.positions[batch.target].tolist()
    assert len(set(seen)) == wanted
