"""What of the plug-in needs no vLLM: states over several steps, and the exported directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.backends.vllm_format import ExportManifest
from recsys.errors import ConfigError, DataError
from recsys.models import RecommenderConfig
from recsys.storage import write_json_atomically
from windfire_vllm.export import Export
from windfire_vllm.tail import keep_tail


def steps_of(states: torch.Tensor, lengths: list[int], count: int, start: int = 0) -> tuple[torch.Tensor, list[Any]]:
    """The tail behind steps of these lengths; every chunk is overwritten after its step, as vLLM does."""
    kept: list[torch.Tensor] = []
    end, found = start, states[:0]
    for length in lengths:
        chunk = states[end - start : end - start + length].clone()
        end += length
        found = keep_tail(kept, chunk, end=end, count=count)
        chunk.fill_(torch.nan)
    return found, kept


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.integers(1, 5))
def test_steps_of_any_length_give_the_last_states(lengths: list[int], count: int) -> None:
    states = torch.arange(2.0 * sum(lengths)).view(-1, 2)
    found, _ = steps_of(states, lengths, count)
    torch.testing.assert_close(found, states[-count:], rtol=0, atol=0)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(1, 9))
def test_positions_that_were_never_computed_are_missed(lengths: list[int], count: int) -> None:
    states = torch.arange(2.0 * sum(lengths)).view(-1, 2)
    found, _ = steps_of(states, lengths, count, start=128)  # a hit in the prefix cache
    assert len(found) == min(count, sum(lengths))


def test_a_preempted_request_begins_anew() -> None:
    states = torch.arange(12.0).view(-1, 2)
    _, kept = steps_of(states, [4], 3)
    keep_tail(kept, states[:1] + 100, end=1, count=3)
    found = keep_tail(kept, states[1:2] + 100, end=2, count=3)
    torch.testing.assert_close(found, states[:2] + 100)


def written(folder: Path, **arrays: Any) -> Path:
    config = RecommenderConfig((3, 4), 5, 0, 0, shape="token", max_history=8, backbone="huggingface")
    manifest = ExportManifest("id", "m", "t", None, items=5, last_rows=5, model=config.to_dict())
    write_json_atomically(folder / "windfire.json", manifest.to_dict())
    whole: dict[str, Any] = {
        "codes": np.zeros((5, 2), np.int32),
        "last_row": np.arange(5),
        "train_counts": np.ones(5, np.int64),
    }
    for name, values in (whole | arrays).items():
        np.save(folder / f"{name}.npy", values)
    return folder


def test_a_history_is_cut_to_the_newest_items(tmp_path: Path) -> None:
    export = Export.load(written(tmp_path))
    assert export.prompt(np.arange(20) % 5) == export.prompt((np.arange(20) % 5)[-8:])
    assert len(export.prompt(np.arange(20) % 5)) == export.vocabulary.longest(8) == 19


def test_a_server_that_cannot_hold_a_history_is_refused(tmp_path: Path) -> None:
    export = Export.load(written(tmp_path))
    export.check_server(longest=19)
    with pytest.raises(ConfigError, match="--max-model-len 19") as raised:
        export.check_server(longest=18)
    assert (raised.value.field, raised.value.value) == ("max_model_len", 18)


@pytest.mark.parametrize("name", ["codes", "last_row", "train_counts"])
def test_an_array_of_another_catalogue_is_refused(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, **{name: np.zeros(4)})
    with pytest.raises(DataError) as raised:
        Export.load(path)
    assert raised.value.field == name


def test_a_missing_array_is_refused(tmp_path: Path) -> None:
    (written(tmp_path) / "codes.npy").unlink()
    with pytest.raises(DataError, match=r"codes\.npy cannot be read"):
        Export.load(tmp_path)
