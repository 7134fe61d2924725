from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.bundle import BundleManifest, Registry
from recsys.bundle.gate import Comparison, Gate, basis_of, judge
from recsys.bundle.manifest import TrainingData
from recsys.bundle.pointers import CANARY, SHADOW, Share, bucket, clear_share, read_share, write_share
from recsys.bundle.promotion import moves, promote, roll_back, served_before
from recsys.datasets.prepared import PreparedData
from recsys.errors import GateError, InputError


def manifest(version: str = "", *, measured_on: str | None = "events", **metrics: float) -> BundleManifest:
    return BundleManifest(
        version=version,
        model_version="m",
        tokenizer_version="t",
        catalog_sequence=0,
        items=0,
        created=datetime(2026, 1, 1, tzinfo=UTC).isoformat(),
        training=TrainingData(0, None, None),
        code_version="c",
        metrics=metrics,
        measured_on=measured_on,
    )


def writes(value: BundleManifest, text: str) -> Callable[[Path], BundleManifest]:
    def write(directory: Path) -> BundleManifest:
        (directory / "data.txt").write_text(text)
        return value

    return write


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """v1 is served; v2 measures 4 % worse, v3 half of it, v4 on other events."""
    registry = Registry(tmp_path)
    registry.publish("v1", writes(manifest(ndcg=0.100), "1"))
    for version, value in {"v2": 0.096, "v3": 0.05}.items():
        registry.publish(version, writes(manifest(ndcg=value), version), make_current=False)
    registry.publish("v4", writes(manifest(ndcg=0.2, measured_on="others"), "4"), make_current=False)
    return registry


def test_a_small_fall_passes_and_is_written_down(registry: Registry) -> None:
    verdict = promote(registry, "v2", Gate())
    assert (registry.current(), verdict.passed) == ("v2", True)
    line = moves(registry)[-1]
    assert (line["kind"], line["from"], line["to"], line["reason"]) == ("promote", "v1", "v2", None)
    assert line["verdict"] == "ndcg 0.1000 -> 0.0960 (-4.0%, allowed -5.0%)"


def test_a_worse_bundle_is_refused_with_the_figures(registry: Registry) -> None:
    with pytest.raises(GateError, match=r"ndcg 0\.1000 -> 0\.0500 \(-50\.0%, allowed -5\.0%\)") as raised:
        promote(registry, "v3", Gate())
    assert (raised.value.field, raised.value.value) == ("version", "v3")
    assert (registry.current(), moves(registry)) == ("v1", [])


def test_a_forced_bundle_keeps_its_reason(registry: Registry) -> None:
    promote(registry, "v3", Gate(), reason="the old one infringes")
    assert registry.current() == "v3"
    assert (moves(registry)[-1]["reason"], moves(registry)[-1]["passed"]) == ("the old one infringes", False)
    with pytest.raises(InputError, match="a reason has 1 to 1000 characters"):
        promote(registry, "v3", Gate(), reason="  ")


def test_what_cannot_be_compared_says_so_and_follows_the_setting(registry: Registry) -> None:
    assert promote(registry, "v4", Gate()).note.startswith("not comparable: v1 was measured on other held-out events")
    registry.rollback("v1")
    with pytest.raises(GateError, match="not comparable"):
        promote(registry, "v4", Gate(incomparable="refuse"))
    assert registry.current() == "v1"


def test_a_tolerance_of_its_own_wins() -> None:
    served, worse = manifest("a", ndcg=1.0, recall=1.0), manifest("b", ndcg=0.9, recall=0.99)
    assert not judge(worse, served, Gate()).passed
    assert judge(worse, served, Gate({"ndcg": 0.2, "*": 0.05})).passed
    only = judge(worse, served, Gate({"recall": 0.05}))
    assert [each.metric for each in only.comparisons] == ["recall"]
    assert not judge(worse, served, Gate({}, "refuse")).passed
    lacking = judge(manifest("b", recall=2.0), served, Gate())
    assert "it lacks ndcg" in lacking.note
    assert judge(manifest("a", ndcg=0.0), served, Gate()).passed, "the served bundle itself"


@given(served=st.floats(0, 1), fall=st.floats(-1, 1), tolerance=st.floats(0, 1))
def test_exactly_the_tolerance_is_allowed(served: float, fall: float, tolerance: float) -> None:
    candidate = served * (1 - fall)
    held = Comparison("m", served, candidate, tolerance).held
    assert held == (candidate >= served - tolerance * served)
    assert not Comparison("m", served, float("nan"), tolerance).held


def test_a_damaged_served_bundle_stops_no_promotion(registry: Registry) -> None:
    (registry.path("v1") / "manifest.json").write_text("{}")
    promote(registry, "v3", Gate())
    assert registry.current() == "v3"


def test_rolling_back_goes_to_what_was_served_before(registry: Registry) -> None:
    promote(registry, "v4", Gate())
    promote(registry, "v2", Gate())
    assert [roll_back(registry), roll_back(registry)] == ["v4", "v1"]
    assert [move["kind"] for move in moves(registry)] == ["promote", "promote", "roll_back", "roll_back"]
    with pytest.raises(InputError, match="before the current"):
        roll_back(registry)
    assert roll_back(registry, "v3") == "v3", "named, it is served whatever it measures"
    assert roll_back(registry) == "v2", "nobody has promoted it: the one published before"


@pytest.mark.parametrize("version", ["..", "../../etc", "a/b", "", ".CURRENT", "v9"])
def test_names_outside_the_registry_are_refused(registry: Registry, version: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: promote(registry, version, Gate()),
        lambda: roll_back(registry, version),
        lambda: write_share(registry, CANARY, Share(version, 0.5, "s")),
    ]
    for call in calls:
        with pytest.raises(InputError) as raised:
            call()
        assert raised.value.field == "version"
    assert registry.current() == "v1"


def test_a_move_ends_the_canary_and_half_a_line_is_left_out(registry: Registry) -> None:
    write_share(registry, CANARY, Share("v2", 0.1, "salt"))
    write_share(registry, SHADOW, Share("v3", 1.0, "salt"))
    assert read_share(registry, CANARY) == Share("v2", 0.1, "salt")
    promote(registry, "v2", Gate())
    assert read_share(registry, CANARY) is None
    assert clear_share(registry, SHADOW) == Share("v3", 1.0, "salt")
    assert clear_share(registry, SHADOW) is None
    with (registry.root / "moves.jsonl").open("a") as file:
        file.write('{"time": "20')
    assert len(moves(registry)) == 1
    promote(registry, "v1", Gate({}))
    assert [move["to"] for move in moves(registry)] == ["v2", "v1"]
    promote(registry, "v2", Gate({}))
    with pytest.raises(InputError, match="served to everybody already"):
        write_share(registry, CANARY, Share("v2", 0.1, "salt"))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": "../x", "share": 0.1, "salt": ""}', "\xff"])
def test_a_spoiled_pointer_is_named(registry: Registry, text: str) -> None:
    (registry.root / CANARY).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError):
        read_share(registry, CANARY)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(InputError, match="above 0"):
        Share("v1", share, "")


def test_shares_are_stable_nested_and_of_the_right_size() -> None:
    users = [f"user-{n}" for n in range(20_000)]
    small = {user for user in users if Share("v", 0.1, "one").takes(user)}
    large = {user for user in users if Share("v", 0.3, "one").takes(user)}
    other = {user for user in users if Share("v", 0.1, "two").takes(user)}
    assert small < large
    deviation = np.sqrt(0.1 * 0.9 / len(users))
    assert abs(len(small) / len(users) - 0.1) < 4 * deviation
    assert abs(len(small & other) / len(small) - 0.1) < 4 * np.sqrt(0.1 * 0.9 / len(small))
    assert bucket("one", "user-0") == 0.09435301188455918, "another hash would reassign the users of running canaries"


def test_the_basis_names_events_and_split_not_the_model(tiny_work: Path) -> None:
    data = PreparedData.load(tiny_work)
    basis = basis_of(data, {"steps": 1})
    assert basis == basis_of(replace(data, codes=data.codes + 1, tokenizer_version="other"), {"evaluate_users": 4000})
    later = replace(data.sequences, valid_index=data.sequences.valid_index - 1)
    others = [
        basis_of(replace(data, sequences=later), {}),
        basis_of(data, {"evaluate_users": 3}),
        basis_of(data, {"evaluate_users": 3, "rere": {"evaluate_users": 4}}),
    ]
    assert len({basis, *others}) == 4
    none = replace(data.sequences, valid_index=np.full_like(data.sequences.valid_index, -1))
    assert basis_of(replace(data, sequences=none), {}) is None


def test_bundles_of_one_work_directory_are_comparable(tiny_registry: Registry) -> None:
    served = tiny_registry.open_current().manifest
    assert served.measured_on is not None
    assert BundleManifest.load(tiny_registry.path(served.version)) == served


def test_a_spoiled_current_is_mended_by_a_move(registry: Registry) -> None:
    for move in (lambda: promote(registry, "v2", Gate()), lambda: roll_back(registry, "v1")):
        (registry.root / "CURRENT").write_text("../../etc\n")
        move()
    assert registry.current() == "v1"
    assert [(line["from"], line["to"]) for line in moves(registry)] == [(None, "v2"), (None, "v1")]


def test_what_was_served_before_is_the_last_first_and_only_what_was_served(registry: Registry) -> None:
    assert served_before(registry, registry.current()) == []
    promote(registry, "v1", Gate())
    promote(registry, "v3", Gate(), reason="a drill")
    assert served_before(registry, "v3") == ["v1"]
    assert served_before(registry, None) == ["v3", "v1"]
    roll_back(registry, "v1")
    assert served_before(registry, "v2") == ["v1", "v3"], "v2 was never served"
    shutil.rmtree(registry.path("v1"))
    assert served_before(registry, "v2") == ["v3"]
