"""The reports on shadow and canary against logs whose content is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from recsys.errors import DataError, InputError
from recsys.evaluation.ratios import difference, ratio
from recsys.event_log import EventLog, Exposure, ExposureLog
from serving.lifecycle.shadow_log import ShadowList, ShadowLog, ShadowRecord
from windfire.canary_report import report_canary
from windfire.shadow_report import overlap, rank_correlation, report_shadow

DAY = 86_400_000_000


def exposure(request: str, user: str | None, time: int, bundle: str, arm: str | None, *items: str) -> Exposure:
    return Exposure(
        request_id=request,
        user_id=user,
        time=time,
        scene=None,
        items=list(items),
        positions=list(range(len(items))),
        scores=[1.0] * len(items),
        sources=["nezha"] * len(items),
        propensities=[1.0] * len(items),
        served_by="nezha",
        decoder="nezha",
        bundle_version=bundle,
        catalog_version=f"{bundle}.0",
        arms={} if arm is None else {"bundle": arm},
    )


def event(number: int, user: str, item: str, time: int, action: str = "click", request: str | None = None) -> Any:
    return {
        "event_id": f"e-{number}", "user_id": user, "item_id": item, "time": time, "created_at": time,
        "action": action, "request_id": request,
    }  # fmt: skip


def write(state: Path, exposures: list[Exposure], events: list[Any], records: list[ShadowRecord] | None = None) -> Path:
    answered, happened = ExposureLog(state / "exposures"), EventLog(state / "events")
    answered.append(exposures)
    happened.append(events)
    answered.close()
    happened.close()
    shadow = ShadowLog(state)
    for record in records or []:
        shadow.append(record)
    shadow.close()
    return state


def compared(request: str, time: int, live: str, other: str, error: str = "", shadow: str = "new") -> ShadowRecord:
    return ShadowRecord(
        request,
        time,
        None,
        3,
        ShadowList("old", live.split(), "nezha", 0.02, 2, 0),
        ShadowList(shadow, other.split(), "popular_scene", 0.03, 1, 1, error),
    )


def test_a_shadow_report_counts_what_each_list_would_have_held(tmp_path: Path) -> None:
    records = [
        compared("r1", 100, "a b c", "a b c"),
        compared("r2", 200, "a b c", "c b x"),
        compared("r3", 300, "a b", "", error="ValueError: no"),
        compared("r9", 50, "q", "q", shadow="earlier"),
    ]
    users = {"r1": "ann", "r2": "ann", "r3": "bob", "r9": "ann"}
    events = [
        event(0, "ann", "a", 150),  # behind r1: held by both
        event(1, "ann", "a", 250),  # behind r2: held by the live list only
        event(2, "ann", "x", 260),  # behind r2: by the shadow's only
        event(3, "ann", "z", 270),  # by none
        event(4, "ann", "a", 90),  # before every request
        event(5, "ann", "a", 200 + DAY + 1),  # too late
        event(6, "eve", "a", 250),  # was asked nothing
        event(7, "bob", "a", 310, "purchase"),  # the shadow had failed
        event(8, "ann", "a", 250, "impression"),
    ]
    state = tmp_path / "server"
    exposures = [exposure(request, user, 0, "old", None, "a") for request, user in users.items()]
    write(state, [*exposures, exposure("r2", None, 0, "old", None)], events, records)
    report = report_shadow([state], version=None, horizon=DAY)
    live, shadow, both = (report["columns"][name] for name in ("live", "shadow", "both"))
    assert (report["shadow"], report["requests"], report["served"]) == ("new", 3, ["old"])
    assert (both["clicks_later"], both["purchases_later"]) == (4, 1)
    assert (live["clicks_held"], shadow["clicks_held"]) == (0.5, 0.5)
    assert (live["purchases_held"], shadow["purchases_held"]) == (1.0, 0.0)
    assert (live["errors"], shadow["errors"], shadow["ineligible_items"]) == (0, 1, 2)
    assert (live["tier.nezha"], shadow["tier.popular_scene"]) == (1.0, 1.0)
    assert both["overlap"] == pytest.approx((1 + 2 / 3) / 2)
    assert both["rank_correlation"] == pytest.approx((1 - 1) / 2)
    assert live["ms_per_request_p50"] == pytest.approx(10.0)
    assert report_shadow([state], version="earlier", horizon=DAY)["requests"] == 1
    with pytest.raises(DataError, match="no shadow has answered"):
        report_shadow([state], version="other", horizon=DAY)


def test_reports_read_the_states_of_all_workers(tmp_path: Path) -> None:
    for n in range(2):
        record = compared(f"r{n}", 100, "a", "a")
        shown = exposure(f"r{n}", f"user-{n}", 100, "old", None, "a")
        write(tmp_path / f"worker-{n}", [shown], [event(n, f"user-{n}", "a", 150)], [record])
    report = report_shadow([tmp_path], version=None, horizon=DAY)
    assert (report["requests"], report["columns"]["both"]["clicks_later"]) == (2, 2)
    with pytest.raises(DataError, match="no state directory"):
        report_shadow([tmp_path / "nowhere"], version=None, horizon=DAY)


lists = st.lists(st.integers(0, 12).map(str), max_size=8, unique=True)


@given(one=lists, other=lists)
def test_overlap_and_rank_correlation_agree_with_their_definitions(one: list[str], other: list[str]) -> None:
    common = [item for item in one if item in other]
    found = rank_correlation(one, other)
    assert (found is None) == (len(common) < 2)
    expected = stats.spearmanr([one.index(item) for item in common], [other.index(item) for item in common]).statistic
    assert found is None or found == pytest.approx(float(expected))
    assert overlap(one, other) * max(len(one), len(other), 1) == pytest.approx(len(common) or float(not one + other))


def test_a_canary_report_counts_by_assigned_arm(tmp_path: Path) -> None:
    control = [exposure(f"c{n}", f"u{n // 2}", 1_000 + n, "old", "control", "a") for n in range(40)]
    canary = [exposure(f"k{n}", f"v{n // 2}", 1_000 + n, "new", "canary", "a") for n in range(20)]
    others = [
        exposure("failed", "v3", 1_010, "old", "canary", "a"),
        exposure("empty", None, 1_011, "new", "canary"),
        exposure("early", "u1", 1, "old", "control", "a"),
        exposure("unassigned", "u1", 1_005, "old", None, "a"),
        exposure("last", "v9", 1_040, "new", "canary", "a"),
    ]
    events = [
        *(event(n, f"u{n // 2}", "a", 2_000, request=f"c{n}") for n in range(0, 40, 4)),
        *(event(100 + n, f"v{n // 2}", "a", 2_000, request=f"k{n}") for n in range(0, 20, 10)),
        event(200, "u1", "a", 2_000, request="early"),
        event(201, "u1", "a", 2_000),
        event(202, "v1", "a", 2_000, "purchase", request="failed"),
    ]
    report = report_canary([write(tmp_path / "s", [*control, *canary, *others], events)], version=None)
    columns = report["columns"]
    assert (report["canary"], report["first"], report["last"]) == ("new", 1_000, 1_040)
    assert (columns["control"]["answers"], columns["canary"]["answers"]) == (40, 23)
    assert (columns["control"]["units"], columns["canary"]["units"]) == (20, 11)
    assert (columns["canary"]["failures"], columns["canary"]["empty"], columns["control"]["failures"]) == (1, 1, 0)
    assert columns["control"]["clicks_per_answer"] == pytest.approx(10 / 40)
    assert columns["canary"]["clicks_per_answer"] == pytest.approx(2 / 23)
    assert columns["canary"]["purchases_per_answer"] == pytest.approx(1 / 23)
    assert columns["difference"]["clicks_per_answer"] == pytest.approx(2 / 23 - 10 / 40)
    low, high = columns["difference"]["clicks_per_answer_95"]
    assert low < 2 / 23 - 10 / 40 < high
    with pytest.raises(DataError, match="no canary has answered"):
        report_canary([tmp_path / "s"], version="other")


def test_intervals_of_ratios_cover_the_truth_where_users_differ() -> None:
    """Users click at rates of their own; 95 % of the intervals hold the ratio of the expectations."""
    rng = np.random.default_rng(3)
    held = zero = 0
    for _ in range(400):
        answers = rng.integers(1, 20, size=(2, 300)).astype(float)
        clicks = rng.binomial(answers.astype(int), rng.beta(1, 9, size=(2, 300))).astype(float)
        found = ratio(clicks[0], answers[0])
        held += found.low <= 0.1 <= found.high
        between = difference((clicks[0], answers[0]), (clicks[1], answers[1]))
        zero += between.low <= 0.0 <= between.high
    assert 0.92 < held / 400 < 0.98
    assert 0.92 < zero / 400 < 0.98


def test_ratios_without_anything_to_divide_by() -> None:
    nothing = ratio(np.zeros(0), np.zeros(0))
    assert np.isnan([nothing.value, nothing.low]).all()
    single = ratio(np.array([1.0]), np.array([4.0]))
    assert single.value == 0.25
    assert np.isnan(single.low)
    with pytest.raises(InputError, match="one value per user"):
        ratio(np.zeros(2), np.zeros(3))
