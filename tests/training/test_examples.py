from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recsys.datasets.prepared import PreparedData, Sequences
from training.recommender.examples import Batch, BatchSampler, make_windows, thinned


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


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), share=st.floats(0, 0.999), seed=st.integers(0, 1000)
)
def test_a_thinned_batch_keeps_events_in_order_and_one_of_each_window(
    lengths: list[int], share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    real = np.arange(max(lengths)) < np.array(lengths)[:, None]
    positions = np.where(real, np.arange(real.size).reshape(real.shape), -1)
    items = np.where(real, rng.integers(50, size=real.shape), -1)
    batch = Batch(items, positions, real & (rng.random(real.shape) < 0.5))
    fewer = thinned(batch, share, rng)
    targets = set(positions[batch.target].tolist())
    for row, (before, after) in enumerate(zip(positions.tolist(), fewer.positions.tolist(), strict=True)):
        stays = [position for position in after if position >= 0]
        assert stays
        assert after == stays + [-1] * (len(after) - len(stays))
        assert stays == [position for position in before if position in stays]
        assert fewer.items[row, : len(stays)].tolist() == [items.ravel()[position] for position in stays]
        assert fewer.target[row, : len(stays)].tolist() == [position in targets for position in stays]
        assert not fewer.target[row, len(stays) :].any()
    assert (fewer.items >= 0).any(axis=0).all()


def test_events_are_dropped_at_their_share_and_by_the_step(tiny_data: PreparedData) -> None:
    def batches(step: int) -> list[Batch]:
        sampler = BatchSampler(tiny_data.sequences, max_history=50, tokens=128, seed=0, drop=0.3)
        stream = sampler.batches_from(step)
        return [next(stream) for _ in range(400 - step)]

    whole = BatchSampler(tiny_data.sequences, max_history=50, tokens=128, seed=0).batches_from(0)
    found = batches(0)
    kept = sum((batch.items >= 0).sum() for batch in found) / sum((next(whole).items >= 0).sum() for _ in range(400))
    assert 0.68 < kept < 0.74
    np.testing.assert_array_equal(found[399].items, batches(399)[0].items)
