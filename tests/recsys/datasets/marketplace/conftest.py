"""Worlds that several tests look at."""

from __future__ import annotations

import pytest

from recsys.datasets.marketplace import Marketplace, WorldSize, named_size


@pytest.fixture(scope="session")
def market() -> Marketplace:
    """The smallest named world."""
    return Marketplace(named_size("tests"), 7)


@pytest.fixture(scope="session")
def tiny() -> WorldSize:
    """A world for whole tables: three blocks, of which the last is not full."""
    return WorldSize("tiny", items=120, users=60, days=8, kinds=1, modifiers=1, block=24)
