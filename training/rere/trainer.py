"""The loop: roll out, reward, update; resumable, ended by early stopping, steps or processor time."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from safetensors.torch import save_file

from recsys.bundle.loading import load_model
from recsys.bundle.writer import RUN_FORMAT
from recsys.errors import ConfigError
from recsys.models import ItemFeatures
from recsys.storage import read_json, sha256_parts, staged_directory, write_json_atomically
from training.progress import StepBar, cpu_seconds
from training.recommender.checkpoint import Progress, load_checkpoint, save_checkpoint
from training.recommender.metrics import MetricsLog
from training.recommender.trainer import data_fingerprint
from training.recommender.validation import validation_ndcg
from training.recommender.warm_start import items_fingerprint, load_parent
from training.rere.candidates import Candidates, available_items
from training.rere.groups import diversity, has_hit
from training.rere.learning import referenced, rewarded, rolled_groups, update
from training.rere.policy import Policy
from training.rere.samples import Samples
from training.schedule import warmup_cosine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from recsys.datasets.prepared import PreparedData
    from training.rere.groups import Groups
    from training.rere.settings import RereSettings

_BETAS: Final = (0.9, 0.98)
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
        ConfigError: `source` holds a model that has no draft head over the children of a prefix, or a hint is
            longer than a semantic ID.
        DataError: no run in `source`, a checkpoint of other inputs in `out`, or nothing to learn from.
        VersionMismatchError: `source` belongs to another tokenizer or catalogue.
    """
    trainer = RereTrainer(source, data, settings, out, seed=seed, show_progress=show_progress)
    manifest = out / "manifest.json"
    if manifest.exists() and (found := read_json(manifest))["fingerprint"] == trainer.fingerprint:
        return dict(found)
    return trainer.run()


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
        self.data, self.settings, self.out, self.seed = data, settings, out, seed
        self.show_progress = show_progress
        parent = load_parent(source, data)
        found = read_json(source / "manifest.json")
        self.origin: dict[str, Any] = found["config"]["settings"] if "config" in found else found["settings"]
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.fingerprint = sha256_parts(
            [data_fingerprint(data), settings.model_dump_json(), str(seed), parent.fingerprint]
        )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        features = ItemFeatures(data.codes, data.text, data.collaborative, data.train_counts)
        model = load_model(source / "model", features, data.codebook_sizes).to(self.device)
        self.policy = Policy(model, data.codes, data.train_counts)
        self.reference = self.policy.reference()
        available = available_items(data)
        self.candidates = Candidates(
            self.policy.trie, None if available.all() else available, exclude_history=settings.exclude_history
        )
        if settings.hint_levels > self.policy.trie.levels:
            raise ConfigError(
                f"a semantic ID has {self.policy.trie.levels} codes",
                field="hint_levels",
                value=settings.hint_levels,
                remedy="give fewer codes as a hint",
            )
        self.samples = Samples(data.sequences, seed=seed, limit=model.config.max_history)
        self.optimiser = torch.optim.AdamW(
            self.policy.model.parameters(),
            lr=settings.learning_rate,
            betas=_BETAS,
            weight_decay=settings.weight_decay,
        )
        self.progress = Progress()
        self.best = self._weights()
        self.measured: defaultdict[str, list[float]] = defaultdict(list)

    def run(self) -> dict[str, Any]:
        """Train until the last step, early stopping or the end of the time, then write the run directory.

        Returns:
            The run's manifest.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        checkpoint = self.out / "checkpoint.safetensors"
        for half in self.out.glob(f".{checkpoint.name}.*.tmp"):  # what a run wrote when it was killed
            half.unlink(missing_ok=True)
        if checkpoint.exists():
            self.progress, _, self.best = load_checkpoint(
                checkpoint,
                fingerprint=self.fingerprint,
                model=self.policy.model,
                optimiser=self.optimiser,
                generator=torch.Generator(),
            )
        log = MetricsLog(self.out, step=self.progress.step)
        bar = StepBar(self.settings.steps, self.progress.step, visible=self.show_progress)
        try:
            with bar as tick:
                self._loop(log, tick)
        finally:
            log.close()
        return self._finish()

    def _loop(self, log: MetricsLog, tick: Callable[[str], None]) -> None:
        settings, progress = self.settings, self.progress
        started = time.monotonic() - progress.seconds, cpu_seconds() - progress.cpu_seconds
        if progress.best < 0:
            self._evaluate(log)
        while progress.step < settings.steps and not progress.stopped and not self._out_of_time():
            self._step()
            progress.step += 1
            self._clock(started)
            last = progress.step == settings.steps or self._out_of_time()
            if progress.step % settings.evaluate_every == 0 or last:
                self._evaluate(log)
                self._clock(started)
                self._save()
            tick(f"reward {self._last('reward'):.3f} ndcg@10 {max(progress.best, 0):.4f}")

    def _clock(self, started: tuple[float, float]) -> None:
        self.progress.seconds = time.monotonic() - started[0]
        self.progress.cpu_seconds = cpu_seconds() - started[1]

    def _out_of_time(self) -> bool:
        limit = self.settings.cpu_minutes
        return limit is not None and self.progress.cpu_seconds >= 60 * limit

    def _step(self) -> None:
        """One step; a pure function of weights, optimiser, seed and step."""
        settings, step, policy = self.settings, self.progress.step, self.policy
        for group in self.optimiser.param_groups:
            group["lr"] = warmup_cosine(
                step,
                peak=settings.learning_rate,
                steps=settings.steps,
                warmup=settings.warmup_steps,
                final=settings.final_rate,
            )
        rng = np.random.default_rng([self.seed, step])
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**62)))
        samples = self.samples.at(step, settings.batch)
        requests = self.samples.requests(samples)
        groups = rolled_groups(policy, self.candidates, requests, samples, settings, generator)
        groups = rewarded(groups, settings, rng)
        self._measure(groups)
        if not settings.keep_idle:
            rows = np.flatnonzero(~groups.idle)
            requests, groups = requests.some(rows), groups.some(rows)
        if len(groups):
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

    def _last(self, name: str) -> float:
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

    def _finish(self) -> dict[str, Any]:
        progress, model = self.progress, self.policy.model
        model.load_state_dict(self.best)
        manifest = {
            "format": RUN_FORMAT,
            "settings": {**self.origin, "rere": self.settings.model_dump()},
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
