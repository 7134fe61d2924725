"""The runner against the real application."""

from __future__ import annotations

from loadtest.answers import not_empty
from loadtest.open_loop import run_open
from loadtest.running import Load, run_in_loop
from loadtest.summary import summarize
from loadtest.target import Target
from loadtest.workload import Ids, Workload


def test_the_real_application_answers_what_the_workload_asks(service: str) -> None:
    target = Target.parse(service)
    workload = Workload(
        mix={"recommend": 3, "events": 1},
        users=Ids(pattern="user-{:02d}", count=30),
        items=Ids(pattern="item-{:02d}", count=48),
        unknown_users=0.5,
        n=5,
    )
    load = Load(rate=60, seconds=1.5, warmup=0.3, deadline=5.0, timeout=20.0)
    run = run_in_loop(run_open(target, load, workload.requests(target, 2), not_empty))
    summary = summarize(run)
    assert summary.errors == run.warmup_errors == {}
    assert summary.offered > 50
    assert set(summary.tiers) == {"nezha", "popular_scene"}  # with and without a history
