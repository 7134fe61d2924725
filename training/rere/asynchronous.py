"""ReRe over several processes: rollouts beside training, by the core in `training/rl`.

The core's prompt is a block here: the histories of one call, whose rounding then never depends on who rolled out or
what failed. Prompt p is block p mod B of step p div B, so that batch v of the core is the batch of step v.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from recsys.datasets.prepared import PreparedData
from recsys.errors import ConfigError, DataError
from training.progress import StepBar, cpu_seconds
from training.recommender.checkpoint import Progress, load_state_tensors, state_tensors
from training.recommender.metrics import MetricsLog
from training.rere.groups import Groups
from training.rere.settings import RereSettings
from training.rere.start import Start
from training.rere.trainer import PROCESSES, RereTrainer, finished
from training.rl.controller import Controller, Settings, run
from training.rl.process import CHECKPOINT
from training.rl.protocols import Part
from training.rl.schedule import Plan
from training.rl.wire import Arrays, unpack_arrays

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

_ROLLED: Final = ("samples", "targets", "items", "hinted", "log_probs")
_JUDGED: Final = ("rewards", "advantages")
_LOGGED: Final = ("loss", "reward", "hit_rate", "zero_advantage", "kl")
_STEP_SECONDS: Final = 3600.0  # a validation may be among them
_START_SECONDS: Final = 600.0


def train_asynchronously(
    source: Path,
    work: Path,
    settings: RereSettings,
    out: Path,
    *,
    seed: int,
    show_progress: bool = False,
    on_step: Callable[[Controller], None] | None = None,
) -> dict[str, Any]:
    """As `training.rere.trainer.train_rere`, with rollouts in `settings.workers` processes beside the learner's.

    Args:
        source: see there.
        work: the work directory, which every process reads.
        settings: with `workers` of 1 or more.
        out: run directory; what the processes share is kept in its folder `rl`.
        seed: see there.
        show_progress: see there.
        on_step: called after every step.

    Returns:
        The run's manifest.

    Raises:
        ConfigError: no worker, or as `train_rere`.
        DataError: as `train_rere`, or the checkpoint of a run in one process in `out`.
        RunError: processes die again and again, or a part fails; the checkpoint stays good.
    """
    if not settings.workers:
        raise ConfigError("needs a rollout process", field="workers", value=0, remedy="give 1 or more, or `train_rere`")
    trainer = RereTrainer(source, PreparedData.load(work), settings, out, seed=seed)
    if (manifest := finished(out, trainer.fingerprint)) is not None:
        return manifest
    if (out / CHECKPOINT).exists():
        raise DataError(
            "the checkpoint is of a run in one process",
            field="workers",
            value=settings.workers,
            remedy="continue it with workers: 0, or choose another --out",
        )
    directory = out / PROCESSES
    chosen = core_settings(source, work, trainer, seed=seed)
    restored = directory / CHECKPOINT
    if restored.exists():
        unpack_state(trainer, unpack_arrays(restored.read_bytes()))
    with StepBar(settings.steps, trainer.progress.step, visible=show_progress) as tick:
        run(chosen, directory, _Watch(trainer.progress.step, tick, on_step))
    unpack_state(trainer, unpack_arrays(restored.read_bytes()))
    return trainer.finish()


class _Watch:
    """Draws every step once, also where a learner that was killed repeats some."""

    def __init__(self, done: int, tick: Callable[[str], None], also: Callable[[Controller], None] | None) -> None:
        self._done, self._tick, self._also = done, tick, also

    def __call__(self, controller: Controller) -> None:
        step = controller.schedule.version
        if step > self._done:
            self._done = step
            found = controller.report.metrics[step - 1]
            self._tick(f"reward {found['reward']:.3f} ndcg@10 {found['best']:.4f}")
        if self._also is not None:
            self._also(controller)


def core_settings(source: Path, work: Path, trainer: RereTrainer, *, seed: int) -> Settings:
    """The run as the core sees it; the trainer's fingerprint stands for all that decides the weights."""
    settings, blocks = trainer.settings, trainer.settings.blocks
    paths = {"source": source, "work": work, "out": trainer.out}
    local: dict[str, Any] = {name: str(path.resolve()) for name, path in paths.items()}
    local |= {"seed": seed, "settings": settings.model_dump()}
    options, threads = {"fingerprint": trainer.fingerprint}, settings.threads or 1
    judging = {"judging": settings.judging, "seed": seed, "blocks": blocks}
    return Settings(
        plan=Plan(
            prompts=settings.steps * blocks,
            batch=blocks,
            alpha=settings.alpha,
            chunk=1,
            pinned=settings.pinned,
            shuffled=False,
        ),
        rollout=Part("training.rere.asynchronous:RereRollout", options, local, threads),
        reward=Part("training.rere.judge:RereReward", options, judging),
        learner=Part("training.rere.asynchronous:RereLearner", options, local, threads),
        rollout_workers=settings.workers,
        checkpoint_every=settings.evaluate_every,
        seconds=_STEP_SECONDS,
        start_seconds=_START_SECONDS,
    )


class RereRollout:
    """Rolls out blocks by the weights it was given.

    Args:
        options: of `core_settings`.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        data = PreparedData.load(Path(options["work"]))
        settings = RereSettings.parse(options["settings"])
        self._start = Start.load(Path(options["source"]), data, settings, seed=options["seed"])
        self._counted = cpu_seconds()

    def load(self, weights: Arrays) -> None:
        """Take the weights, by name."""
        self._start.policy.model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})

    def roll(self, prompt_ids: npt.NDArray[np.int64], weights_version: int, seeds: npt.NDArray[np.int64]) -> Arrays:
        """Groups (n, C, ...) of n blocks of C histories, and the processor time since the last call, (n,).

        The seeds are not used: draws are seeded as in one process, by the run's seed and the block.
        """
        del weights_version, seeds
        blocks = self._start.settings.blocks
        groups = [self._start.roll_out(*divmod(place, blocks)) for place in prompt_ids.tolist()]
        arrays: Arrays = {name: np.stack([getattr(group, name) for group in groups]) for name in _ROLLED}
        seconds = np.zeros(len(groups))
        seconds[0], self._counted = cpu_seconds() - self._counted, cpu_seconds()
        return arrays | {"cpu_seconds": seconds}


class RereLearner:
    """Updates, validates, keeps the best weights and writes the metrics.

    Args:
        options: of `core_settings`.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        data = PreparedData.load(Path(options["work"]))
        settings = RereSettings.parse(options["settings"])
        self._trainer = RereTrainer(Path(options["source"]), data, settings, Path(options["out"]), seed=options["seed"])
        self._log: MetricsLog | None = None  # made when it is known from which step on

    @property
    def done(self) -> bool:
        """After the last step, early stopping or the end of the processor time."""
        return self._trainer.done

    def step(self, batch: Arrays) -> dict[str, float]:
        """Update by a batch of blocks; returns means over the batch, and the best validation NDCG@10 so far."""
        trainer = self._trainer
        if self._log is None:
            self._log = MetricsLog(trainer.out, step=trainer.progress.step)
            trainer.begin(self._log)
        trainer.charge(float(batch["cpu_seconds"].sum()))
        trainer.learn(
            Groups(**{name: batch[name].reshape(-1, *batch[name].shape[2:]) for name in (*_ROLLED, *_JUDGED)})
        )
        found = {name: trainer.last(name) for name in _LOGGED}
        trainer.count(self._log)
        if trainer.done:
            self._log.close()
        return found | {"best": max(trainer.progress.best, 0.0)}

    def weights(self) -> Arrays:
        """The policy's, by name."""
        return {name: value.cpu().numpy() for name, value in self._trainer.policy.model.state_dict().items()}

    def state(self) -> Arrays:
        """See `unpack_state`."""
        trainer = self._trainer
        tensors = state_tensors(trainer.policy.model, {}, trainer.best, trainer.optimiser)
        arrays = {name: value.detach().cpu().numpy() for name, value in tensors.items()}
        text = json.dumps(asdict(trainer.progress)).encode()
        return arrays | {"progress": np.frombuffer(text, dtype=np.uint8)}

    def restore(self, state: Arrays) -> None:
        """Go back to what `state` returned."""
        unpack_state(self._trainer, state)


def unpack_state(trainer: RereTrainer, state: Arrays) -> None:
    """Put a trainer where `RereLearner.state` was taken: weights, the best of them, the optimiser, the progress."""
    progress = Progress(**json.loads(state["progress"].tobytes()))
    tensors = {name: torch.from_numpy(value) for name, value in state.items() if name != "progress"}
    _, best = load_state_tensors(tensors, trainer.policy.model, trainer.optimiser)
    trainer.resume(progress, best)
