from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import BaseModel

from loadtest.errors import SettingsError
from loadtest.settings import LoadSettings
from loadtest.target import Request, Target
from loadtest.workload import Ids, Workload
from serving.schemas import EventsRequest, RecommendRequest, SimilarRequest

TARGET = Target("127.0.0.1", 8080)
REFERENCE = Path(__file__).resolve().parents[2] / "config" / "loadtest.yaml"


def drawn(workload: Workload, count: int, seed: int = 1) -> list[Request]:
    return list(islice(workload.requests(TARGET, seed), count))


def bodies(workload: Workload, count: int) -> list[dict[str, Any]]:
    return [json.loads(request.body) for request in drawn(workload, count)]


def test_every_request_is_one_that_the_api_takes() -> None:
    workload = Workload(
        mix={"recommend": 2, "similar": 1, "events": 1},
        scenes=["home", "cart"],
        unknown_users=0.25,
        users=Ids(count=50),
    )
    requests = drawn(workload, 4000)
    forms: dict[str, type[BaseModel]] = {
        "recommend": RecommendRequest,
        "similar": SimilarRequest,
        "events": EventsRequest,
    }
    for request in requests:
        forms[request.kind].model_validate_json(request.body)
        assert f"POST /v1/{request.kind} ".encode() in request.head
    kinds = Counter(request.kind for request in requests)
    assert kinds["recommend"] == pytest.approx(2000, abs=150)
    assert kinds["similar"] == pytest.approx(1000, abs=150)
    asked = [json.loads(request.body) for request in requests if request.kind == "recommend"]
    assert {body["scene"] for body in asked} == {"home", "cart"}
    assert sum("user_id" not in body for body in asked) / len(asked) == pytest.approx(0.25, abs=0.05)
    events = [json.loads(r.body)["events"][0]["event_id"] for r in requests if r.kind == "events"]
    assert len(set(events)) == len(events)


def test_the_seed_decides() -> None:
    workload = Workload(users=Ids(count=1000))
    assert drawn(workload, 2000) == drawn(workload, 2000)
    assert drawn(workload, 20) != drawn(workload, 20, seed=2)


def test_no_event_comes_a_second_time_under_the_same_seed() -> None:
    workload = Workload(mix={"events": 1})
    first, second = ([body["events"][0] for body in bodies(workload, 50)] for _ in range(2))
    assert not {event["event_id"] for event in first} & {event["event_id"] for event in second}
    assert [event["item_id"] for event in first] == [event["item_id"] for event in second]


@pytest.mark.parametrize("skew", [0.0, 0.8, 1.0, 1.5])
def test_popularity_follows_its_exponent(skew: float) -> None:
    workload = Workload(users=Ids(pattern="{}", count=100), skew=skew)
    numbers = np.array([int(body["user_id"]) for body in bodies(workload, 15_000)])
    assert numbers.min() == 0
    assert numbers.max() == 99
    # of a density falling with (x + 1) ** -skew
    edges = np.arange(101) + 1.0
    mass = (np.log(edges) if skew == 1 else edges ** (1 - skew)) * (1 if skew <= 1 else -1)
    expected = np.diff(mass) / (mass[-1] - mass[0])
    assert np.abs(np.bincount(numbers, minlength=100) / len(numbers) - expected).max() < 0.015


def test_users_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text("ann\nbob\n\ncleo\n")
    assert {body["user_id"] for body in bodies(Workload(users=Ids(file=path)), 200)} == {"ann", "bob", "cleo"}
    path.write_text("\n")
    with pytest.raises(SettingsError, match="no ids"):
        drawn(Workload(users=Ids(file=path)), 1)
    with pytest.raises(SettingsError, match="cannot be read"):
        drawn(Workload(users=Ids(file=tmp_path / "absent")), 1)


@pytest.mark.parametrize("pattern", ["u", "u{", "{name}", "{} {}"])
def test_a_pattern_must_make_ids_of_numbers(pattern: str) -> None:
    with pytest.raises(SettingsError, match="makes no ids"):
        drawn(Workload(users=Ids(pattern=pattern)), 1)


def test_something_must_be_asked() -> None:
    with pytest.raises(SettingsError, match="no kind"):
        drawn(Workload(mix={"recommend": 0.0}), 1)


def test_the_reference_file_holds_every_setting_with_its_default() -> None:
    value = yaml.safe_load(REFERENCE.read_text())
    assert LoadSettings.load(REFERENCE) == LoadSettings()
    assert value == json.loads(LoadSettings().model_dump_json())


@pytest.mark.parametrize(
    ("text", "field"),
    [("rate: 0", "rate"), ("speed: 3", "speed"), ("sweep: {start: x}", "sweep.start"), ("rate: .nan", "rate"),
     ("journeys: {weights: {new_visitor: 1}}", "journeys.weights"),
     ("workload: {mix: {buy: 1}}", "workload.mix.buy.[key]"),
     ("- 1", "config"), ("a: [", "config")],
)  # fmt: skip
def test_what_is_wrong_is_named(text: str, field: str, tmp_path: Path) -> None:
    path = tmp_path / "load.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as error:
        LoadSettings.load(path)
    assert error.value.field == field
    assert "config/loadtest.yaml" in error.value.remedy


def test_what_is_given_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "load.yaml"
    path.write_text("rate: 7\nseconds: 3")
    settings = LoadSettings.load(path, rate=9.0, seconds=None)
    assert (settings.one().rate, settings.one().seconds) == (9.0, 3.0)


def test_a_step_of_the_sweep_holds_enough_requests() -> None:
    settings = LoadSettings()
    assert (settings.step(10.0).seconds, settings.step(10.0).warmup) == (100.0, 2.0)
    assert settings.step(1000.0).seconds == 10.0


def test_secrets_come_from_the_environment_and_stay_out_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOAD_KEY", "s3cret")
    settings = LoadSettings(header_variables={"X-API-Key": "LOAD_KEY"})
    assert settings.target().headers == {"X-API-Key": "s3cret"}
    assert "s3cret" not in settings.model_dump_json()
    monkeypatch.delenv("LOAD_KEY")
    with pytest.raises(SettingsError, match="not set"):
        settings.target()
