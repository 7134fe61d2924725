"""Minutes of the life of a Redis with sentinels; `windfire bench features` measures what is only bounded here."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.features_faults import fail_over

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("with_sentinel", [False, True])
def test_what_a_failover_lost_comes_back_from_the_log(redis_needed: None, tmp_path: Path, with_sentinel: bool) -> None:
    """A busy machine may take longer than the two seconds of the measurement, but not without bound."""
    run = fail_over(tmp_path, with_sentinel=with_sentinel)
    assert run.lost > 0
    assert run.missing == 0
    assert run.seconds < 10
    assert run.seconds - run.steps["+switch-master"] < 2
