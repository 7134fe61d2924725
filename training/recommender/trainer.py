"""The training loop: resumable, early-stopped, the same on one process and on several."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from recsys.backends import choose_backbone
from recsys.decoding.trie import SidTrie
from recsys.errors import ConfigError
from recsys.models import ItemFeatures, RecommenderConfig, build_model
from recsys.models.normaliser import Normaliser
from recsys.processor import has_bfloat16
from recsys.storage import read_json, sha256_parts, staged_directory, write_json_atomically
from training.progress import StepBar, cpu_seconds
from training.recommender.checkpoint import Progress, RandomState, load_checkpoint, save_checkpoint
from training.recommender.examples import Batch, BatchSampler
from training.recommender.metrics import MetricsLog
from training.recommender.objectives import Distilled, Smoothing, batch_loss
from training.recommender.teacher import TeacherTargets, build_teacher
from training.recommender.validation import validation_ndcg
from training.recommender.warm_start import items_fingerprint, warm_start
from training.schedule import warmup_cosine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

    from recsys.datasets.prepared import PreparedData
    from training.recommender.settings import TrainSettings
    from training.recommender.warm_start import Parent

RUN_FORMAT = "windfire.run/1"
_MOST_ITEM_ROWS: Final = 200_000  # beyond, they would cost more than the rest of a step
_BETWEEN_RANKS: Final = 1_000_003  # seeds of neighbours stay apart from seeds that people choose


@dataclass(frozen=True, slots=True)
class Workers:
    """This process among the processes of one run (torchrun), or alone."""

    rank: int
    world: int

    @classmethod
    def current(cls) -> Workers:
        """Join torchrun's process group where there is one; each process takes the GPU of its local rank."""
        if dist.is_torchelastic_launched() and not dist.is_initialized():
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        if dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls(0, 1)

    def sum_in_place(self, tensors: list[Tensor]) -> None:
        """Sum tensors over all processes, in one message."""
        if self.world == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def gathered(self, value: RandomState) -> list[RandomState]:
        """The value of every process, by rank."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found


def item_features(data: PreparedData, settings: TrainSettings) -> ItemFeatures:
    """The model's view of the items; parts that are switched off have width 0."""
    none = np.zeros((len(data.codes), 0), dtype=np.float32)
    return ItemFeatures(
        codes=data.codes,
        text=data.text if settings.model.use_text else none,
        collaborative=data.collaborative if settings.model.use_collaborative else none,
        train_counts=data.train_counts,
    )


def recommender_config(features: ItemFeatures, data: PreparedData, settings: TrainSettings) -> RecommenderConfig:
    """Settings and the data's sizes together."""
    chosen = settings.model.model_dump(exclude={"use_text", "use_collaborative"})
    items = len(features.codes)
    if settings.model.item_rows is None:
        possible = settings.model.shape == "compact" and not settings.model.whole_codebook
        chosen["item_rows"] = possible and items <= _MOST_ITEM_ROWS
    return RecommenderConfig(
        codebook_sizes=data.codebook_sizes,
        num_items=items,
        text_dim=features.text.shape[1],
        collaborative_dim=features.collaborative.shape[1],
        **chosen,
    )


def data_fingerprint(data: PreparedData) -> str:
    """Of all arrays that training reads."""
    arrays = (
        data.codes, data.text, data.collaborative, data.train_counts,
        data.sequences.items, data.sequences.offsets, data.sequences.train_end, data.sequences.valid_index,
    )  # fmt: skip
    return sha256_parts([data.tokenizer_version, *(np.ascontiguousarray(array).tobytes() for array in arrays)])


class Trainer:
    """One run: build with `Trainer(...)`, then `run()`.

    Args:
        data: the prepared arrays.
        settings: the experiment.
        out: run directory; a checkpoint found there is continued.
        seed: of initial weights, dropout, sampler and teacher samples.
        parent: a model to start from.
        show_progress: whether to draw a progress bar.

    Raises:
        ConfigError: sizes or a backbone that cannot be built.
        DataError: `out` holds a checkpoint of other data, settings or parent, or there is no training event.
    """

    def __init__(
        self,
        data: PreparedData,
        settings: TrainSettings,
        out: Path,
        *,
        seed: int,
        parent: Parent | None = None,
        show_progress: bool = False,
    ) -> None:
        self.data, self.settings, self.out, self.seed = data, settings, out, seed
        self.show_progress = show_progress
        self.workers = Workers.current()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if settings.cpu_minutes is not None and self.workers.world > 1:
            raise ConfigError(
                "a limit of processor time is for a run in one process",
                field="cpu_minutes",
                value=settings.cpu_minutes,
                remedy="limit `steps` instead",
            )
        self.bfloat16 = has_bfloat16(self.device.type) if settings.bf16 is None else settings.bf16
        if settings.threads:
            torch.set_num_threads(settings.threads)
        origin = [] if parent is None else [parent.fingerprint]
        self.fingerprint = sha256_parts([data_fingerprint(data), settings.identity(), str(seed), *origin])
        features = item_features(data, settings)
        self.config = recommender_config(features, data, settings)
        self.trie = SidTrie.build(data.codes, data.codebook_sizes)
        torch.manual_seed(seed)
        self.model = build_model(self.config, features, choose_backbone).to(self.device)
        self.warm = parent is not None
        if parent is not None:
            warm_start(self.model, parent)
        self.normaliser = Normaliser(self.trie, whole_codebook=self.config.whole_codebook).to(self.device)
        own_seed = seed + _BETWEEN_RANKS * self.workers.rank
        if self.workers.rank:  # the same weights, but dropout and the teacher's draws of its own
            torch.manual_seed(own_seed)
        self.generator = torch.Generator().manual_seed(own_seed)
        self.optimiser = _optimiser(self.model, settings)
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.best = self.average
        self.progress = Progress()
        self.teacher: TeacherTargets | None = None
        self.metrics: MetricsLog | None = None
        self._started = time.monotonic()
        self._cpu_started = cpu_seconds()

    def run(self) -> dict[str, Any]:
        """Train until the last step or early stopping, then write the run directory.

        Returns:
            the run's manifest.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        checkpoint = self.out / "checkpoint.safetensors"
        for half in self.out.glob(f".{checkpoint.name}.*.tmp"):  # what a run wrote when it was killed
            half.unlink(missing_ok=True)
        if checkpoint.exists():
            self.progress, self.average, self.best = load_checkpoint(
                checkpoint,
                fingerprint=self.fingerprint,
                model=self.model,
                optimiser=self.optimiser,
                generator=self.generator,
                rank=self.workers.rank,
            )
        earlier = (self.progress.seconds, self.progress.cpu_seconds)
        if not self.progress.stopped and self.progress.step < self.settings.steps:
            rng = torch.get_rng_state()
            self.teacher = build_teacher(self.data, self.settings.teacher, self.settings.model.max_history)
            torch.set_rng_state(rng)
        with self._bar() as tick, ExitStack() as stack:
            if self.workers.rank == 0:
                self.metrics = MetricsLog(self.out, step=self.progress.step)
                stack.callback(self.metrics.close)
            self._loop(tick, earlier)
        return self._finish()

    def _loop(self, tick: Callable[[str], None], earlier: tuple[float, float]) -> None:
        settings, progress = self.settings, self.progress
        sampler = BatchSampler(
            self.data.sequences,
            max_history=self.config.max_history,
            tokens=settings.batch_tokens,
            seed=self.seed,
            drop=settings.drop_events,
        )
        stream = sampler.batches_from(progress.step)
        if self.warm and progress.best < 0:
            self._choose()
        while progress.step < settings.steps and not progress.stopped and not self._out_of_time():
            loss = self._step(next(stream))
            progress.step += 1
            progress.cpu_seconds = earlier[1] + cpu_seconds() - self._cpu_started
            last = progress.step == settings.steps or self._out_of_time()
            if progress.step % settings.evaluate_every == 0 or last:
                self._evaluate(loss)
            progress.seconds = earlier[0] + time.monotonic() - self._started
            progress.cpu_seconds = earlier[1] + cpu_seconds() - self._cpu_started
            if progress.step % settings.checkpoint_every == 0:
                self._save()
            tick(f"loss {loss:.3f} ndcg@10 {max(progress.best, 0):.4f}")

    def _out_of_time(self) -> bool:
        limit = self.settings.cpu_minutes
        return limit is not None and self.progress.cpu_seconds >= 60 * limit

    def _step(self, batch: Batch) -> float:
        settings, workers = self.settings, self.workers
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.progress.step, settings)
        self.model.train()
        rows = slice(workers.rank, None, workers.world)
        items = torch.from_numpy(batch.items[rows]).to(self.device)  # (B, n)
        target = torch.from_numpy(batch.target[rows]).to(self.device)
        distilled = self._distilled(torch.from_numpy(batch.positions[rows])[target.cpu()])
        autocast = torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bfloat16 else nullcontext()
        with autocast:
            loss = batch_loss(
                self.model,
                self.normaliser,
                items,
                target,
                distilled,
                backbone_weight=settings.backbone_weight,
                smoothing=self._smoothing(int(target.sum())),
            )
        self.optimiser.zero_grad(set_to_none=False)
        loss.backward()  # type: ignore[no-untyped-call]
        count = float(batch.target.sum())
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        total = loss.detach().reshape(1)
        workers.sum_in_place([*gradients, total])
        torch._foreach_div_(gradients, count)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        self.optimiser.step()
        self._update_average()
        return float(total) / count

    def _distilled(self, positions: Tensor) -> Distilled | None:
        if self.teacher is None:
            return None
        settings = self.settings.teacher
        items, spoken = self.teacher.sample(positions, settings.samples, self.generator)
        return Distilled(items.to(self.device), spoken.to(self.device), settings.weight)

    def _smoothing(self, count: int) -> Smoothing | None:
        if self.settings.label_smoothing == 0:
            return None
        items = torch.randint(self.config.num_items, (count,), generator=self.generator)
        return Smoothing(items.to(self.device), self.settings.label_smoothing)

    def _update_average(self) -> None:
        # The average forgets the first steps sooner: decay grows to its final value.
        decay = min(self.settings.average_decay, (1 + self.progress.step) / (10 + self.progress.step))
        if self.settings.average_decay == 0:
            decay = 0.0
        with torch.no_grad():
            state = self.model.state_dict()
            torch._foreach_lerp_(list(self.average.values()), [state[n] for n in self.average], 1 - decay)

    def _choose(self) -> float | None:
        """Validate the average, and keep it if it is the best so far; a parent's own weights are the first."""
        settings, progress = self.settings, self.progress
        current = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        self.model.eval()
        value = validation_ndcg(
            self.model, self.trie, self.data, users=settings.evaluate_users, beam=settings.evaluate_beam
        )
        self.model.load_state_dict(current)
        if value is None or value > progress.best:  # nothing to choose by: the newest weights
            progress.best, progress.best_step, progress.stale = value or 0.0, progress.step, 0
            self.best = {name: average.clone() for name, average in self.average.items()}
        else:
            progress.stale += 1
            progress.stopped = progress.stale >= settings.patience
        return value

    def _evaluate(self, loss: float) -> None:
        progress, value = self.progress, self._choose()
        if self.metrics is not None:
            row = {
                "loss": loss,
                "learning_rate": learning_rate(progress.step, self.settings),
                "valid.ndcg@10": value or 0.0,
                "cpu_seconds": progress.cpu_seconds,
            }
            self.metrics.append(progress.step, row)

    def _save(self) -> None:
        random = self.workers.gathered(RandomState.of(self.generator))
        if self.workers.rank:
            return
        save_checkpoint(
            self.out / "checkpoint.safetensors",
            fingerprint=self.fingerprint,
            progress=self.progress,
            model=self.model,
            average=self.average,
            best=self.best,
            optimiser=self.optimiser,
            random=random,
        )

    def _finish(self) -> dict[str, Any]:
        self.model.load_state_dict(self.best)
        self.model.eval()
        progress = self.progress
        manifest = {
            "format": RUN_FORMAT,
            "settings": self.settings.model_dump(mode="json"),
            "seed": self.seed,
            "tokenizer_version": self.data.tokenizer_version,
            "items": items_fingerprint(self.data),
            "fingerprint": self.fingerprint,
            "steps": progress.step,
            "best_step": progress.best_step,
            "stopped_early": progress.stopped,
            "bfloat16": self.bfloat16,
            "metrics": {"valid.ndcg@10": progress.best},
            "seconds": round(progress.seconds, 3),
            "cpu_seconds": round(progress.cpu_seconds, 3),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
        }
        if self.workers.rank == 0:
            with staged_directory(self.out / "model") as staged:
                write_json_atomically(staged / "config.json", self.config.to_dict())
                tensors = {name: value.cpu().contiguous() for name, value in self.best.items()}
                save_file(tensors, staged / "weights.safetensors")
            write_json_atomically(self.out / "manifest.json", manifest)
        return manifest

    def _bar(self) -> StepBar:
        return StepBar(self.settings.steps, self.progress.step, visible=self.show_progress and self.workers.rank == 0)


def train(
    data: PreparedData,
    settings: TrainSettings,
    out: Path,
    *,
    seed: int,
    parent: Parent | None = None,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Train a recommender; a finished run with the same inputs is not repeated. Returns the run's manifest."""
    trainer = Trainer(data, settings, out, seed=seed, parent=parent, show_progress=show_progress)
    manifest = out / "manifest.json"
    if manifest.exists() and (found := read_json(manifest))["fingerprint"] == trainer.fingerprint:
        return dict(found)
    return trainer.run()


def learning_rate(step: int, settings: TrainSettings) -> float:
    """See `warmup_cosine`."""
    return warmup_cosine(
        step,
        peak=settings.learning_rate,
        steps=settings.steps,
        warmup=settings.warmup_steps,
        final=settings.final_rate,
    )


def _optimiser(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)
