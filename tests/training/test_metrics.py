from __future__ import annotations

import time
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.recommender.metrics import MetricsLog


def logged(out: Path, first: int, *steps: int) -> None:
    log = MetricsLog(out, step=first)
    for step in steps:
        log.append(step, {"loss": step / 4, "valid.ndcg@10": 0.5})
    log.close()


def test_both_files_hold_every_evaluation(tmp_path: Path) -> None:
    logged(tmp_path, 0, 10, 20)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,loss,valid.ndcg@10", "10,2.5,0.5", "20,5,0.5"]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(10, 2.5), (20, 5.0)]


def test_a_resumed_run_forgets_what_it_logs_again(tmp_path: Path) -> None:
    logged(tmp_path, 0, 10, 20)
    logged(tmp_path, 10, 20, 30)
    steps = [line.split(",")[0] for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    assert steps == ["step", "10", "20", "30"]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [10, 20, 30]


def test_a_row_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    logged(tmp_path, 0, 10)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("20,5")
    logged(tmp_path, 20, 30)
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1:] == ["10,2.5,0.5", "30,7.5,0.5"]


def test_a_file_cut_off_in_its_header_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,lo")
    logged(tmp_path, 10, 20)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,loss,valid.ndcg@10", "20,5,0.5"]


def test_the_events_of_a_resumed_run_are_read_behind_the_earlier_ones(tmp_path: Path) -> None:
    logged(tmp_path, 0, 10)
    (early,) = (tmp_path / "tensorboard").iterdir()
    second = int(time.time()) + 1  # and a name that sorts behind whatever is made in it
    early.rename(early.with_name(f"events.out.tfevents.{second}.zzz"))
    logged(tmp_path, 10, 20)
    names = sorted(path.name for path in (tmp_path / "tensorboard").iterdir())
    assert names[0] == f"events.out.tfevents.{second}.zzz"
    assert int(names[1].split(".")[3]) > second
