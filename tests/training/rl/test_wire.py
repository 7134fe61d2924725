"""Arrays as bytes and groups that stay whole."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.errors import DataError
from training.rl.wire import join_groups, pack, split_groups, unpack


def test_a_message_comes_back_bit_for_bit_and_writable() -> None:
    arrays = {
        "a": np.arange(6, dtype=np.int64).reshape(2, 3).T,
        "b": np.array(-0.0),
        "c": np.zeros((0, 3), np.float32),
        "d": np.array([True]),
    }
    head, found = unpack(pack({"version": 3, "name": "ü"}, arrays))
    assert head == {"version": 3, "name": "ü"}
    assert {n: (v.shape, v.dtype, v.tobytes()) for n, v in found.items()} == {
        n: (v.shape, v.dtype, v.tobytes()) for n, v in arrays.items()
    }
    assert all(value.flags.writeable for value in found.values())


def test_joining_undoes_splitting() -> None:
    arrays = {"items": np.arange(12).reshape(3, 4), "log_probs": np.arange(6.0).reshape(3, 2, 1)}
    groups = split_groups(arrays, 3)
    assert [group["items"].shape for group in groups] == [(1, 4)] * 3
    again = join_groups(groups)
    assert all(np.array_equal(again[name], arrays[name]) for name in arrays)


def test_groups_that_do_not_fit_are_named() -> None:
    with pytest.raises(DataError, match="no array"):
        split_groups({}, 2)
    with pytest.raises(DataError, match=r"given 2 groups.*items"):
        split_groups({"items": np.zeros((3, 2))}, 2)
    with pytest.raises(DataError, match="differ in form"):
        join_groups([{"items": np.zeros((1, 2))}, {"items": np.zeros((1, 3))}])
