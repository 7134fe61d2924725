from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recsys.bundle.loading import load_model
from recsys.datasets.prepared import PreparedData
from recsys.errors import ConfigError, DataError
from recsys.processor import has_bfloat16
from training.recommender.settings import TrainSettings
from training.recommender.trainer import Trainer, item_features, learning_rate, train

SMALL = {
    "model": {"d_model": 32, "layers": 1, "heads": 2, "max_history": 8, "dropout": 0.1},
    "teacher": {"kind": "none"},
    "steps": 30,
    "batch_tokens": 256,
    "evaluate_every": 10,
    "checkpoint_every": 10,
    "bf16": False,
    "threads": 1,
}


def settings(**changes: object) -> TrainSettings:
    return TrainSettings.parse({**SMALL, **changes})


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "weights.safetensors")


@pytest.mark.parametrize("shape", ["compact", "flat", "token"])
def test_every_shape_learns_a_predictable_walk(shape: str, tiny_data: PreparedData, tmp_path: Path) -> None:
    chosen = settings(model={**SMALL["model"], "shape": shape, "dropout": 0.0}, steps=150, learning_rate=5e-3)  # type: ignore[dict-item]
    manifest = train(tiny_data, chosen, tmp_path / "run", seed=1)
    assert manifest["metrics"]["valid.ndcg@10"] > 0.8


@pytest.mark.parametrize(
    "switch",
    [
        {"whole_codebook": True},
        {"placeholders": False},
        {"shape": "token", "placeholders": False},
        {"transition": "none"},
        {"transition": "rnn"},
        {"fusion": "concat"},
        {"use_item_id": False, "use_text": False, "use_collaborative": False},
    ],
    ids=lambda switch: "-".join(map(str, switch)),
)
def test_every_switch_trains(switch: dict[str, object], tiny_data: PreparedData, tmp_path: Path) -> None:
    manifest = train(tiny_data, settings(model={**SMALL["model"], **switch}), tmp_path / "run", seed=1)  # type: ignore[dict-item]
    assert manifest["steps"] == 30


@pytest.mark.parametrize(("given", "taken"), [(None, has_bfloat16()), (True, True), (False, False)])
def test_products_are_made_as_the_processor_makes_them_best(
    given: bool | None, taken: bool, tiny_data: PreparedData, tmp_path: Path
) -> None:
    assert train(tiny_data, settings(bf16=given, steps=1), tmp_path / "run", seed=1)["bfloat16"] is taken


@pytest.mark.parametrize("shape", ["compact", "flat", "token"])
def test_a_hugging_face_backbone_trains_and_loads(shape: str, tiny_data: PreparedData, tmp_path: Path) -> None:
    chosen = settings(
        model={
            **SMALL["model"],  # type: ignore[dict-item]
            "shape": shape,
            "backbone": "huggingface",
            "backbone_config": {"num_key_value_heads": 1},
        },
        steps=20,
        bf16=True,
    )
    trainer = Trainer(tiny_data, chosen, tmp_path / "run", seed=1)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.run()
    assert all(not torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())
    loaded = load_model(tmp_path / "run" / "model", item_features(tiny_data, chosen), tiny_data.codebook_sizes)
    histories, lengths = torch.tensor([[3, 4, 5], [9, -1, -1]]), torch.tensor([3, 1])
    with torch.inference_mode():
        torch.testing.assert_close(
            loaded.encode(histories, lengths), trainer.model.encode(histories, lengths), rtol=0, atol=0
        )


@pytest.mark.parametrize("shape", ["compact", "token"])
def test_resume_equals_the_uninterrupted_run_bit_for_bit(shape: str, tiny_data: PreparedData, tmp_path: Path) -> None:
    model = {**SMALL["model"], "shape": shape}  # type: ignore[dict-item]
    teacher = {"kind": "ease", "top": 10}
    whole = settings(model=model, teacher=teacher)
    train(tiny_data, whole, tmp_path / "whole", seed=4)
    interrupted = Trainer(tiny_data, whole, tmp_path / "parts", seed=4)
    stop = RuntimeError("killed")

    def kill(step: int = 17) -> None:
        original = interrupted._step

        def stepped(batch: object) -> float:
            if interrupted.progress.step == step:
                raise stop
            return original(batch)  # type: ignore[arg-type]

        interrupted._step = stepped  # type: ignore[method-assign]

    kill()
    with pytest.raises(RuntimeError, match="killed"):
        interrupted.run()
    torch.manual_seed(999)
    train(tiny_data, whole, tmp_path / "parts", seed=4)
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_checkpoint_of_other_settings_is_refused(tiny_data: PreparedData, tmp_path: Path) -> None:
    train(tiny_data, settings(), tmp_path / "run", seed=1)
    with pytest.raises(DataError, match="checkpoint"):
        train(tiny_data, settings(learning_rate=1e-4), tmp_path / "run", seed=1)


def test_a_finished_run_is_not_repeated(tiny_data: PreparedData, tmp_path: Path) -> None:
    first = train(tiny_data, settings(), tmp_path / "run", seed=1)
    assert train(tiny_data, settings(), tmp_path / "run", seed=1) == first


def test_early_stopping_ends_the_run(tiny_data: PreparedData, tmp_path: Path) -> None:
    frozen = settings(learning_rate=1e-12, steps=200, evaluate_every=5, patience=2)
    manifest = train(tiny_data, frozen, tmp_path / "run", seed=1)
    assert manifest["stopped_early"]
    assert manifest["steps"] < 200


def test_processor_time_ends_a_run_and_an_unset_limit_changes_no_fingerprint(
    tiny_data: PreparedData, tmp_path: Path
) -> None:
    manifest = train(tiny_data, settings(cpu_minutes=1e-9), tmp_path / "run", seed=1)
    assert (manifest["steps"], manifest["best_step"]) == (1, 1)
    assert {"cpu_minutes", "label_smoothing", "drop_events"}.isdisjoint(json.loads(settings().identity()))
    assert {"members", "seed"}.isdisjoint(json.loads(settings().identity())["teacher"])
    assert settings(label_smoothing=0.1).identity() != settings(label_smoothing=0.2).identity()
    assert settings(drop_events=0.1).identity() != settings().identity()
    assert settings(cpu_minutes=2.0).identity() != settings(cpu_minutes=3.0).identity()


def test_without_validation_targets_the_last_weights_are_kept(tiny_data: PreparedData, tmp_path: Path) -> None:
    nothing = np.full(tiny_data.sequences.users, -1, np.int32)
    data = replace(tiny_data, sequences=replace(tiny_data.sequences, valid_index=nothing))
    manifest = train(data, settings(evaluate_every=5, patience=2), tmp_path / "run", seed=1)
    assert (manifest["steps"], manifest["best_step"], manifest["stopped_early"]) == (30, 30, False)
    assert manifest["metrics"]["valid.ndcg@10"] == 0.0


def test_a_teacher_that_never_speaks_leaves_the_loss_to_the_targets(tiny_data: PreparedData, tmp_path: Path) -> None:
    single = np.minimum(tiny_data.sequences.train_end, 1)  # one training event each: nothing to ask the teacher
    data = replace(tiny_data, sequences=replace(tiny_data.sequences, train_end=single))
    train(data, settings(), tmp_path / "alone", seed=1)
    train(data, settings(teacher={"kind": "ease", "top": 10}), tmp_path / "taught", seed=1)
    alone, taught = weights(tmp_path / "alone"), weights(tmp_path / "taught")
    assert all(torch.equal(alone[name], taught[name]) for name in alone)


def test_a_log_without_training_events_is_an_error(tiny_data: PreparedData, tmp_path: Path) -> None:
    nothing = np.zeros_like(tiny_data.sequences.train_end)
    data = replace(tiny_data, sequences=replace(tiny_data.sequences, train_end=nothing))
    with pytest.raises(DataError, match="no training event"):
        train(data, settings(), tmp_path / "run", seed=1)


def test_the_learning_rate_warms_up_and_falls() -> None:
    chosen = settings(steps=100, warmup_steps=10, learning_rate=1.0, final_rate=0.1)
    rates = [learning_rate(step, chosen) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0, abs=0.01)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_a_backbone_that_cannot_be_built_ends_before_training(tiny_data: PreparedData, tmp_path: Path) -> None:
    model = {**SMALL["model"], "backbone": "huggingface", "backbone_config": {"model_type": "bert"}}  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="no causal decoder"):
        Trainer(tiny_data, settings(model=model), tmp_path / "run", seed=1)


def test_an_unknown_setting_names_itself() -> None:
    with pytest.raises(ConfigError, match=r"model\.d_modle"):
        TrainSettings.parse({"model": {"d_modle": 3}})


# Dropout and a teacher: every process has to go on with its own random numbers.
RANDOM = {**SMALL, "teacher": {"kind": "ease", "top": 10}, "evaluate_every": 30}
EXACT = {
    **SMALL,
    "model": {**SMALL["model"], "dropout": 0.0, "drop_id": 0.0},  # type: ignore[dict-item]
    "steps": 50,
    "evaluate_every": 50,
    "patience": 99,
}
TWO_PROCESSES = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, {folder!r})
from conftest_tiny import tiny
from training.recommender.settings import TrainSettings
from training.recommender.trainer import Trainer, train
out = Path({folder!r})
train(tiny(), TrainSettings.parse({exact!r}), out / "two", seed=3)
settings = TrainSettings.parse({random!r})
train(tiny(), settings, out / "whole", seed=3)
killed = Trainer(tiny(), settings, out / "parts", seed=3)
step = killed._step
def stepped(batch):
    if killed.progress.step == 17:
        raise RuntimeError("killed")
    return step(batch)
killed._step = stepped
try:
    killed.run()
except RuntimeError as error:
    assert str(error) == "killed", error
train(tiny(), settings, out / "parts", seed=3)
"""


@pytest.fixture(scope="module")
def two_processes(tiny_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two processes, which start once for all: `two`, `whole`, and `parts`, which was interrupted."""
    folder = tmp_path_factory.mktemp("two_processes")
    np.savez(folder / "tiny.npz", **arrays(tiny_data))  # type: ignore[arg-type]
    (folder / "conftest_tiny.py").write_text(RELOAD.format(path=str(folder / "tiny.npz")))
    script = folder / "script.py"
    script.write_text(TWO_PROCESSES.format(folder=str(folder), exact=EXACT, random=RANDOM))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    loopback = ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *loopback, str(script)], check=True, timeout=200, capture_output=True, env=environment)
    return folder


def test_two_processes_continue_bit_for_bit(two_processes: Path) -> None:
    one, two = weights(two_processes / "whole"), weights(two_processes / "parts")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_two_processes_equal_one(two_processes: Path, tiny_data: PreparedData, tmp_path: Path) -> None:
    train(tiny_data, TrainSettings.parse(EXACT), tmp_path / "one", seed=3)
    one, two = weights(tmp_path / "one"), weights(two_processes / "two")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6, msg=name)


RELOAD = """
import numpy as np
import pyarrow as pa
from recsys.datasets.prepared import PreparedData, Sequences
def tiny():
    z = np.load({path!r}, allow_pickle=True)
    names = ("user_ids", "offsets", "items", "times", "train_end", "valid_index", "test_index")
    items = pa.table({{"item_id": z["item_ids"]}})
    return PreparedData(items, Sequences(*(z[n] for n in names)), z["text"], z["collaborative"], z["codes"],
                        (4, 4, 4), "test", z["train_counts"])
"""


def arrays(data: PreparedData) -> dict[str, np.ndarray]:
    names = ("user_ids", "offsets", "items", "times", "train_end", "valid_index", "test_index")
    own = {name: getattr(data.sequences, name) for name in names}
    rest = ("text", "collaborative", "codes", "train_counts")
    return own | {name: getattr(data, name) for name in rest} | {"item_ids": data.items["item_id"].to_numpy()}
