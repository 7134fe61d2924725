"""The runner against a server that stands still: what an open loop must show and a closed one cannot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loadtest.errors import SettingsError
from loadtest.selftest import SelfTest, self_test
from loadtest.summary import Value


@pytest.fixture(scope="module")
def frozen() -> SelfTest:
    """7 s at half the knee with a freeze of .7 s, on a stub that takes 1 ms per request and so answers 1,000/s."""
    return self_test(7.0, knee=1000.0, service=0.001)


def test_the_open_loop_shows_the_freeze_and_the_closed_loop_misses_it(frozen: SelfTest) -> None:
    assert frozen.failures == []
    seen, missed = frozen.open_summary.latency_ms["p99"].value, frozen.closed_summary.from_send_ms["p99"].value
    low, high = frozen.bounds_ms
    assert seen is not None
    assert missed is not None
    assert 600 < low <= seen <= high < 800
    assert missed < 0.25 * 700 < seen
    assert frozen.open_summary.errors == frozen.closed_summary.errors == {}
    assert frozen.open_summary.offered > frozen.closed_summary.offered  # the closed loop left requests out
    assert not frozen.open_loop.client_bound


def test_a_runner_that_saw_nothing_would_fail(frozen: SelfTest) -> None:
    blind = replace(frozen, open_summary=frozen.closed_summary)
    assert ["open loop" in failure for failure in blind.failures] == [True]
    from_send = replace(frozen.open_summary, latency_ms=frozen.open_summary.from_send_ms)
    assert ["open loop" in failure for failure in replace(frozen, open_summary=from_send).failures] == [True]
    sighted = replace(frozen, closed_summary=replace(frozen.closed_summary, from_send_ms={"p99": Value(650.0)}))
    assert ["closed loop" in failure for failure in sighted.failures] == [True]
    failing = replace(frozen, open_summary=replace(frozen.open_summary, errors={"timeout": 3}))
    assert failing.failures == ["open loop: errors {'timeout': 3}"]


def test_a_window_that_is_too_short() -> None:
    with pytest.raises(SettingsError, match="too short"):
        self_test(1.0, knee=100.0)
