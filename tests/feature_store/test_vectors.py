"""Vectors in a view come back as the codes allow, shortened on the way in where asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.redis_server import RedisServer
from feature_store.fields import Field, Kind
from feature_store.opening import open_store
from feature_store.store import FeatureStore
from feature_store.vectors import Codes, put_vectors, read_vectors, vector_view
from feature_store.views import View
from recsys.backends.compressor_onnx import export_compressor
from recsys.errors import ConfigError, InputError
from recsys.models.smec import Compressor, CompressorConfig
from recsys.retrieval.compressing import open_compressor

NOW = 1_700_000_000_000_000
NAMES = [f"item-{n}" for n in range(1_500)]  # more than one call
CODES = pytest.mark.parametrize("codes", ["float16", "int8"])


@pytest.fixture
def lmdb_address(tmp_path: Path) -> str:
    return f"lmdb:{tmp_path / 'features'}"


@pytest.fixture
def redis_address(server: RedisServer) -> str:
    return server.address


@pytest.fixture(params=["lmdb_address", "redis_address"])
def store(request: pytest.FixtureRequest) -> Iterator[FeatureStore]:
    opened = open_store(request.getfixturevalue(request.param))
    yield opened
    opened.close()


def view_of(width: int, codes: Codes, version: int = 1) -> View:
    return vector_view("item_vector", "item", width, codes=codes, version=version, owner="retrieval")


def vectors(count: int, width: int) -> Any:
    found = np.random.default_rng(3).standard_normal((count, width)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@CODES
def test_vectors_come_back_within_the_bound_of_their_codes(store: FeatureStore, codes: Codes) -> None:
    view, given = view_of(24, codes, version=1 + (codes == "int8")), vectors(len(NAMES), 24)
    assert put_vectors(store, view, NAMES, given, event_time=NOW) == len(NAMES)
    found, there = read_vectors(store, view, [*NAMES, "nobody"])
    assert there.tolist() == [True] * len(NAMES) + [False]
    bound = {"float16": 2.0**-11 * np.abs(given) + 2.0**-25, "int8": np.abs(given).max(axis=1, keepdims=True) / 254}
    assert (np.abs(found[:-1] - given) <= bound[codes] * (1 + 1e-6)).all()
    assert not found[-1].any()
    assert put_vectors(store, view, NAMES[:1], -given[:1], event_time=NOW - 1) == 0, "what is newer stays"


@CODES
def test_a_compressor_shortens_what_is_written(store: FeatureStore, codes: Codes, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    model = Compressor(CompressorConfig(32, 2), torch.linalg.qr(torch.randn(32, 32, generator=generator)).Q)
    path = export_compressor(model, tmp_path)[-1]
    given = 5 * vectors(9, 32)
    view = view_of(8, codes, version=3 + (codes == "int8"))
    put_vectors(store, view, NAMES[:9], given, event_time=NOW, compress=open_compressor(path))
    found, _ = read_vectors(store, view, NAMES[:9])
    np.testing.assert_allclose(found, model.reduce(given, 8), atol=4e-3)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    opened = open_store(f"lmdb:{tmp_path / 'features'}")
    view = view_of(4, "float16")
    with pytest.raises(InputError, match="as many vectors"):
        put_vectors(opened, view, ["a"], vectors(2, 4), event_time=NOW)
    with pytest.raises(InputError, match="vectors of 4 dimensions"):
        put_vectors(opened, view, ["a"], vectors(1, 5), event_time=NOW)
    with pytest.raises(InputError, match="NaN"):
        put_vectors(opened, view, ["a"], np.full((1, 4), np.nan), event_time=NOW)
    assert not read_vectors(opened, view, ["a"])[1].any()
    other = View("clicks", "item", (Field("clicks", Kind.INT64),), 1, "growth")
    with pytest.raises(ConfigError, match="not a view of vectors"):
        read_vectors(opened, other, ["a"])
    with pytest.raises(ConfigError, match="no such codes"):
        vector_view("v", "item", 4, codes="int4", version=1, owner="x")  # type: ignore[arg-type]
    opened.close()
