"""The loop: roll out, reward, update; resumable, ended by early stopping, steps or processor time."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from safetensors.torch import save_file

from recsys.bundle.writer import RUN_FORMAT
from recsys.errors import ConfigError, DataError
from recsys.storage import read_json, staged_directory, write_json_atomically
from training.progress import StepBar, cpu_seconds
from training.recommender.checkpoint import Progress, load_checkpoint, save_checkpoint
from training.recommender.metrics import MetricsLog
from training.recommender.validation import validation_ndcg
from training.recommender.warm_start import items_fingerprint
from training.rere.draws import noise_generator
from training.rere.groups import diversity, has_hit, joined
from training.rere.learning import referenced, rewarded, update
from training.rere.start import Start
from training.schedule import warmup_cosine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from recsys.datasets.prepared import PreparedData
    from training.rere.groups import Groups
    from training.rere.settings import RereSettings

_BETAS: Final = (0.9, 0.98)
PROCESSES: Final = "rl"  # folder of a run directory that belongs to `training.rere.asynchronous`
_MEASURED: Final = ("loss", "reward", "hit_rate", "zero_advantage", "diversity", "kl", "hinted")


def train_rere(
    source: Path,
    data: PreparedData,
    settings: RereSettings,
    out: Path,
    *,
    seed: int,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Train a finished run further by reinforcement; a finished run with the same inputs is not repeated.

    Args:
        source: a run of `windfire train recommender` or of this function, or a bundle of one.
        data: the work directory that it was trained on.
        settings: of this run.
        out: run directory; a checkpoint found there is continued.
        seed: of the samples' order, the draws and the reward noise.
        show_progress: whether to draw a progress bar.

    Returns:
        The run's manifest.

    Raises:
        ConfigError: `source` holds a model that has no draft head over the children of a prefix, a hint is
            longer than a semantic ID, or the settings want several processes.
        DataError: no run in `source`, a checkpoint of other inputs in `out`, or nothing to learn from.
        VersionMismatchError: `source` belongs to another tokenizer or catalogue.
    """
    if settings.workers:
        raise ConfigError(
            "other processes have to read the work directory",
            field="workers",
            value=settings.workers,
            remedy="call training.rere.asynchronous.train_asynchronously, or set 0",
        )
    trainer = RereTrainer(source, data, settings, out, seed=seed, show_progress=show_progress)
    manifest = finished(out, trainer.fingerprint)
    return trainer.run() if manifest is None else manifest


def finished(out: Path, fingerprint: str) -> dict[str, Any] | None:
    """The manifest of a finished run with these inputs, if `out` has one."""
    path = out / "manifest.json"
    found = dict(read_json(path)) if path.exists() else {}
    return found if found.get("fingerprint") == fingerprint else None


class RereTrainer:
    """One run; arguments and errors as `train_rere`."""

    def __init__(
        self,
        source: Path,
        data: PreparedData,
        settings: RereSettings,
        out: Path,
        *,
        seed: int,
        show_progress: bool = False,
    ) -> None:
        self.start = Start.load(source, data, settings, seed=seed)
        self.data, self.settings, self.out, self.seed = data, settings, out, seed
        self.show_progress = show_progress
        self.policy, self.samples = self.start.policy, self.start.samples
        self.fingerprint = self.start.fingerprint
        self.reference = self.policy.reference()
        self.optimiser = torch.optim.AdamW(
            self.policy.model.parameters(),
            lr=settings.learning_rate,
            betas=_BETAS,
            weight_decay=settings.weight_decay,
        )
        self.progress = Progress()
        self.best = self._weights()
        self.measured: defaultdict[str, list[float]] = defaultdict(list)
        self.start_clock()

    def run(self) -> dict[str, Any]:
        """Train until the last step, early stopping or the end of the time, then write the run directory.

        Returns:
            The run's manifest.
        """
        if (self.out / PROCESSES / "checkpoint.safetensors").exists():
            raise DataError(
                "the checkpoint is of a run over several processes",
                field="workers",
                value=0,
                remedy="continue it with workers: 1 or more, or choose another --out",
            )
        self.out.mkdir(parents=True, exist_ok=True)
        checkpoint = self.out / "checkpoint.safetensors"
        for half in self.out.glob(f".{checkpoint.name}.*.tmp"):  # what a run wrote when it was killed
            half.unlink(missing_ok=True)
        if checkpoint.exists():
            progress, _, best = load_checkpoint(
                checkpoint,
                fingerprint=self.fingerprint,
                model=self.policy.model,
                optimiser=self.optimiser,
                generator=torch.Generator(),
            )
            self.resume(progress, best)
        log = MetricsLog(self.out, step=self.progress.step)
        bar = StepBar(self.settings.steps, self.progress.step, visible=self.show_progress)
        try:
            with bar as tick:
                self._loop(log, tick)
        finally:
            log.close()
        return self.finish()

    def _loop(self, log: MetricsLog, tick: Callable[[str], None]) -> None:
        self.start_clock()
        self.begin(log)
        while not self.done:
            self._step()
            if self.count(log):
                self._save()
            tick(f"reward {self.last('reward'):.3f} ndcg@10 {max(self.progress.best, 0):.4f}")

    @property
    def done(self) -> bool:
        """Whether there is no further step."""
        return self.progress.step >= self.settings.steps or self.progress.stopped or self._out_of_time()

    def resume(self, progress: Progress, best: dict[str, Tensor]) -> None:
        """Go on where a run stood, whose weights and optimiser are back already."""
        self.progress, self.best = progress, best
        self.start_clock()

    def start_clock(self) -> None:
        """From now on time counts, on top of what was used before."""
        self._started = time.monotonic() - self.progress.seconds, cpu_seconds() - self.progress.cpu_seconds

    def charge(self, seconds: float) -> None:
        """Count processor time that another process used for this run."""
        self._started = self._started[0], self._started[1] - seconds

    def begin(self, log: MetricsLog) -> None:
        """Validate the start, unless an earlier process did."""
        if self.progress.best < 0:
            self._evaluate(log)

    def count(self, log: MetricsLog) -> bool:
        """Count a step that was taken, and validate where it is time to.

        Returns:
            Whether it was, so that a checkpoint is due.
        """
        self.progress.step += 1
        self._clock()
        if self.progress.step % self.settings.evaluate_every and not self.done:
            return False
        self._evaluate(log)
        self._clock()
        return True

    def _clock(self) -> None:
        self.progress.seconds = time.monotonic() - self._started[0]
        self.progress.cpu_seconds = cpu_seconds() - self._started[1]

    def _out_of_time(self) -> bool:
        limit = self.settings.cpu_minutes
        return limit is not None and self.progress.cpu_seconds >= 60 * limit

    def _step(self) -> None:
        """One step; a pure function of weights, optimiser, seed and step."""
        step, blocks = self.progress.step, self.settings.blocks
        groups = joined([self.start.roll_out(step, block) for block in range(blocks)])
        self.learn(rewarded(groups, self.settings, noise_generator(self.seed, step, blocks)))

    def learn(self, groups: Groups) -> None:
        """Update the policy by this step's whole groups, with rewards and advantages."""
        settings, step, policy = self.settings, self.progress.step, self.policy
        for group in self.optimiser.param_groups:
            group["lr"] = warmup_cosine(
                step,
                peak=settings.learning_rate,
                steps=settings.steps,
                warmup=settings.warmup_steps,
                final=settings.final_rate,
            )
        self._measure(groups)
        if not settings.keep_idle:
            groups = groups.some(np.flatnonzero(~groups.idle))
        if len(groups):
            requests = self.samples.requests(groups.samples)
            reference = referenced(self.reference, requests, groups, settings)
            losses = update(policy, self.optimiser, requests, groups, reference, settings)
            self.measured["loss"].append(float(losses.total))
            self.measured["kl"].append(float(losses.divergence))

    def _measure(self, groups: Groups) -> None:
        values = {
            "reward": float(groups.rewards[groups.valid].mean()) if groups.valid.any() else 0.0,
            "hit_rate": float(has_hit(groups.items, groups.targets).mean()),
            "zero_advantage": float(groups.idle.mean()),
            "diversity": diversity(groups.items),
            "hinted": float((groups.hinted > 0).mean()),
        }
        for name, value in values.items():
            self.measured[name].append(value)

    def last(self, name: str) -> float:
        """What was measured in the newest step, 0 where an evaluation came between."""
        return self.measured[name][-1] if self.measured[name] else 0.0

    def _evaluate(self, log: MetricsLog) -> None:
        """Validate, keep the best weights, and log what was measured since the last time."""
        settings, progress = self.settings, self.progress
        value = validation_ndcg(
            self.policy.model, self.policy.trie, self.data, users=settings.evaluate_users, beam=settings.evaluate_beam
        )
        if value is None or value > progress.best:  # nothing to choose by: the newest weights
            progress.best, progress.best_step, progress.stale = value or 0.0, progress.step, 0
            self.best = self._weights()
        else:
            progress.stale += 1
            progress.stopped = progress.stale >= settings.patience
        means = {name: float(np.mean(self.measured[name])) if self.measured[name] else 0.0 for name in _MEASURED}
        log.append(progress.step, {"valid.ndcg@10": value or 0.0, **means, "cpu_seconds": progress.cpu_seconds})
        self.measured.clear()

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.policy.model.state_dict().items()}

    def _save(self) -> None:
        save_checkpoint(
            self.out / "checkpoint.safetensors",
            fingerprint=self.fingerprint,
            progress=self.progress,
            model=self.policy.model,
            average={},
            best=self.best,
            optimiser=self.optimiser,
            random=[],
        )

    def finish(self) -> dict[str, Any]:
        """Write the run directory of the best weights.

        Returns:
            The run's manifest.
        """
        progress, model = self.progress, self.policy.model
        model.load_state_dict(self.best)
        manifest = {
            "format": RUN_FORMAT,
            "settings": {**self.start.origin, "rere": self.settings.model_dump()},
            "seed": self.seed,
            "tokenizer_version": self.data.tokenizer_version,
            "items": items_fingerprint(self.data),
            "fingerprint": self.fingerprint,
            "steps": progress.step,
            "best_step": progress.best_step,
            "stopped_early": progress.stopped,
            "metrics": {"valid.ndcg@10": progress.best},
            "seconds": round(progress.seconds, 3),
            "cpu_seconds": round(progress.cpu_seconds, 3),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        }
        with staged_directory(self.out / "model") as staged:
            write_json_atomically(staged / "config.json", model.config.to_dict())
            tensors = {name: value.cpu().contiguous() for name, value in self.best.items()}
            save_file(tensors, staged / "weights.safetensors")
        write_json_atomically(self.out / "manifest.json", manifest)
        return manifest
