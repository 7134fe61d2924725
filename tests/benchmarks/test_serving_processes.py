"""`windfire bench serving` over real processes, in seconds. What it measures on a busy machine means nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.serving import bench
from benchmarks.serving_parts.fault_list import FAULTS
from benchmarks.serving_parts.overhead import TITLES
from benchmarks.serving_settings import ServingSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.figures import Report

SMALL = {"items": 60, "codebook": 8, "text": 4, "d_model": 16, "layers": 1, "heads": 2}


@pytest.fixture
def measure(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Report]:
    """Runs a part in its quick form on a tiny bundle, with a deadline that a busy machine keeps."""
    work: Path = tmp_path_factory.mktemp("serving")

    def run(part: str, **section: Any) -> Report:
        settings = ServingSettings.load(quick=True)
        changed = getattr(settings, part).model_copy(update=section)
        update = {"deadline": 5.0, "timeout": 30.0, "users": 20, part: changed}
        update["bundle"] = settings.bundle.model_copy(update=SMALL)
        return bench(settings.model_copy(update=update), work, "test", parts=[part], say=lambda _: None)

    return run


def values(report: Report, stem: str) -> dict[str, float]:
    """Figures below a stem."""
    return {
        figure.name.removeprefix(f"{stem}."): figure.value
        for figure in report.figures
        if figure.name.startswith(f"{stem}.")
    }


def test_cpu_around_the_decode_and_its_stages(measure: Callable[..., Report]) -> None:
    found = values(measure("overhead", requests=30, warm_up=5, rounds=1), "serving.overhead")
    stages = {name.removesuffix("_cpu_ms"): value for name, value in found.items()}
    assert set(TITLES) <= set(stages)
    assert all(value > 0 for name, value in stages.items() if name not in ("rest", "over_echo"))
    assert found["over_echo_cpu_ms"] == pytest.approx(found["cpu_ms"] - found["echo_cpu_ms"])


@pytest.mark.faults
def test_the_knee_and_the_loads_around_it(measure: Callable[..., Report]) -> None:
    section = {"start": 20.0, "highest": 20.0, "load_seconds": 10.0}
    report = measure("knee", **section)
    assert values(report, "serving.knee")["rps"] == 20
    assert values(report, "serving.load50")["failed"] == 0
    assert 0 < values(report, "serving.overload")["full_share"] <= values(report, "serving.overload")["goodput_share"]


@pytest.mark.faults
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_takes_hold_and_no_answer_is_invalid(name: str, measure: Callable[..., Report]) -> None:
    report = measure("faults", names=[name], rate=15.0, seconds=20.0)
    found = values(report, f"serving.fault.{name}")
    assert found["invalid"] == 0
    assert found["offered_rps"] > 0
    assert found.get("effect", 1.0) > 0


@pytest.mark.faults
def test_swaps_and_restarts_fail_nothing_and_mix_nothing(measure: Callable[..., Report]) -> None:
    report = measure("swap", items=200, rate=15.0, swaps=2, rollbacks=1, pause=5.0)
    swap, restart = values(report, "serving.swap"), values(report, "serving.restart")
    assert (swap["swaps"], swap["versions"]) == (3, 3)
    assert (swap["failed"], swap["mixed"]) == (0, 0)
    assert (restart["restarts"], restart["failed"]) == (2, 0)


@pytest.mark.faults
def test_no_item_is_shown_that_has_gone(measure: Callable[..., Report]) -> None:
    found = values(measure("checker", items=200, answers=150, rate=10.0, restart=5.0), "serving.checker")
    assert found["answers"] >= 150
    assert found["in_process"] >= 500
    assert found["changes"] > 0
    assert [found[name] for name in ("ineligible", "behind", "in_process_ineligible", "in_process_behind")] == [0] * 4


@pytest.mark.faults
def test_memory_is_read_with_and_without_an_engine(measure: Callable[..., Report]) -> None:
    report = measure("memory", items=200, workers=2, requests=50)
    for arm in ("socket", "in_process"):
        found = values(report, f"serving.memory.{arm}")
        assert 0 < found["largest_mib"] < found["front_ends_mib"] < found["all_mib"]


@pytest.mark.faults
def test_a_soak_has_slopes_with_intervals(measure: Callable[..., Report]) -> None:
    report = measure("soak", rate=15.0, seconds=20.0, window=4.0)
    slopes = [figure for figure in report.figures if figure.name.endswith("_slope")]
    assert len(slopes) == 3
    assert all(figure.low is not None and figure.low <= figure.value <= (figure.high or 0.0) for figure in slopes)
