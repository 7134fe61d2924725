"""The fitting's loop: resumable, the backbone frozen, the best head by its agreement with the model's own beam."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from safetensors.torch import save_file

from recsys.bundle.external import EXTERNAL, ExternalModel
from recsys.bundle.loading import load_model
from recsys.bundle.writer import RUN_FORMAT
from recsys.decoding.histories import pad_histories
from recsys.decoding.trie import SidTrie
from recsys.errors import ConfigError, DataError, VersionMismatchError
from recsys.models import ItemFeatures, PromptedRecommender
from recsys.storage import read_json, sha256_file, sha256_parts, staged_directory, write_json_atomically
from training.draft_head.agreement import AgainstBeam
from training.draft_head.objective import Children, draw_lesson, head_loss
from training.progress import StepBar
from training.recommender.checkpoint import Progress, load_checkpoint, save_checkpoint
from training.recommender.metrics import MetricsLog
from training.recommender.trainer import data_fingerprint
from training.recommender.warm_start import items_fingerprint
from training.schedule import warmup_cosine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt
    from torch import Tensor

    from recsys.datasets.prepared import PreparedData, Sequences
    from training.draft_head.settings import HeadSettings

_BETAS: Final = (0.9, 0.98)


def fit_head(
    source: Path,
    data: PreparedData,
    settings: HeadSettings,
    out: Path,
    *,
    seed: int,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Fit head and placeholders to an imported model; a finished run with the same inputs is not repeated.

    Args:
        source: the run of `windfire import-model`, or a bundle of one.
        data: the work directory that the import wrote.
        settings: of the fitting.
        out: run directory; a checkpoint found there is continued.
        seed: of initial weights, histories and draws.
        show_progress: whether to draw a progress bar.

    Returns:
        The run's manifest.

    Raises:
        ConfigError: `source` holds another kind of model.
        DataError: nothing imported there, a checkpoint of other inputs in `out`, or nothing to learn from.
        VersionMismatchError: other semantic IDs than the data's.
    """
    fitter = HeadFitter(source, data, settings, out, seed=seed, show_progress=show_progress)
    manifest = out / "manifest.json"
    if manifest.exists() and (found := read_json(manifest))["fingerprint"] == fitter.fingerprint:
        return dict(found)
    return fitter.run()


class HeadFitter:
    """One fitting; arguments and errors as `fit_head`."""

    def __init__(
        self,
        source: Path,
        data: PreparedData,
        settings: HeadSettings,
        out: Path,
        *,
        seed: int,
        show_progress: bool = False,
    ) -> None:
        self.source, self.data, self.settings, self.out, self.seed = source, data, settings, out, seed
        self.show_progress = show_progress
        self.imported = _read_source(source, data)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        parts = [sha256_file(source / "model" / name) for name in ("config.json", EXTERNAL, "weights.safetensors")]
        self.fingerprint = sha256_parts([data_fingerprint(data), settings.model_dump_json(), str(seed), *parts])
        torch.manual_seed(seed)
        self.model = self._load()
        self.trie = SidTrie.build(data.codes, data.codebook_sizes)
        self.children = Children(self.trie).to(self.device)
        self.ends = pairs(data.sequences)
        self.optimiser = torch.optim.AdamW(
            self.model.drafting.parameters(),
            lr=settings.learning_rate,
            betas=_BETAS,
            weight_decay=settings.weight_decay,
        )
        self.progress = Progress()
        self.best = self._weights()
        self.metrics: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """Fit until the last step or early stopping, then write the run directory; returns its manifest."""
        self.out.mkdir(parents=True, exist_ok=True)
        checkpoint = self.out / "checkpoint.safetensors"
        if checkpoint.exists():
            self.progress, _, self.best = load_checkpoint(
                checkpoint,
                fingerprint=self.fingerprint,
                model=self.model.drafting,
                optimiser=self.optimiser,
                generator=torch.Generator(),
            )
        settings = self.settings
        against = AgainstBeam(
            self.model, self.trie, self.data, users=settings.evaluate_users, beam=settings.evaluate_beam
        )
        log = MetricsLog(self.out, step=self.progress.step)
        bar = StepBar(settings.steps, self.progress.step, visible=self.show_progress)
        try:
            with bar as tick:
                self._loop(against, log, tick)
        finally:
            log.close()
        self.model.drafting.load_state_dict(self.best)
        self.metrics = against.measure().metrics()
        return self._finish()

    def _loop(self, against: AgainstBeam, log: MetricsLog, tick: Callable[[str], None]) -> None:
        settings, progress = self.settings, self.progress
        earlier, started = progress.seconds, time.monotonic()
        while progress.step < settings.steps and not progress.stopped:
            loss = self._step()
            progress.step += 1
            if progress.step % settings.evaluate_every == 0 or progress.step == settings.steps:
                self._evaluate(against, log, loss)
            progress.seconds = earlier + time.monotonic() - started
            if progress.step % settings.checkpoint_every == 0:
                save_checkpoint(
                    self.out / "checkpoint.safetensors",
                    fingerprint=self.fingerprint,
                    progress=progress,
                    model=self.model.drafting,
                    average={},
                    best=self.best,
                    optimiser=self.optimiser,
                    random=[],
                )
            tick(f"loss {loss:.4f} top-10 {max(progress.best, 0):.3f}")

    def _step(self) -> float:
        """One step; a pure function of weights, optimiser, seed and step."""
        settings, step = self.settings, self.progress.step
        for group in self.optimiser.param_groups:
            group["lr"] = warmup_cosine(
                step,
                peak=settings.learning_rate,
                steps=settings.steps,
                warmup=settings.warmup_steps,
                final=settings.final_rate,
            )
        rng = np.random.default_rng([self.seed, step])
        histories, targets = self._draw(rng)
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**62)))
        items, lengths = pad_histories(
            histories, items=self.model.config.num_items, limit=self.model.config.max_history, device=self.device
        )
        with torch.no_grad():
            prompt = self.model.encode_prompt(items, lengths)
        lesson = draw_lesson(self.model, self.children, prompt, targets, samples=settings.samples, generator=generator)
        hidden = self.model.draft_states(prompt)
        loss = head_loss(self.model, self.children, hidden, lesson, data_weight=settings.data_weight)
        self.optimiser.zero_grad(set_to_none=False)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.drafting.parameters(), settings.clip)
        self.optimiser.step()
        return float(loss.detach())

    def _draw(self, rng: np.random.Generator) -> tuple[list[npt.NDArray[np.int32]], Tensor]:
        """Histories and the (B,) items that came next."""
        rows = self.ends[rng.integers(len(self.ends), size=self.settings.batch)]
        items, limit = self.data.sequences.items, self.model.config.max_history
        histories = [items[max(start, end - limit) : end] for start, end in rows.tolist()]
        return histories, torch.from_numpy(items[rows[:, 1]].astype(np.int64)).to(self.device)

    def _evaluate(self, against: AgainstBeam, log: MetricsLog, loss: float) -> None:
        progress = self.progress
        found = against.measure()
        if found.top10 > progress.best:
            progress.best, progress.best_step, progress.stale = found.top10, progress.step, 0
            self.best = self._weights()
        else:
            progress.stale += 1
            progress.stopped = progress.stale >= self.settings.patience
        log.append(progress.step, {"loss": loss, **found.metrics()})

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.model.drafting.state_dict().items()}

    def _load(self) -> PromptedRecommender:
        data = self.data
        features = ItemFeatures(data.codes, data.text, data.collaborative, data.train_counts)
        model = load_model(self.source / "model", features, data.codebook_sizes)
        if not isinstance(model, PromptedRecommender):
            raise ConfigError(
                "a head is fitted to imported models; models trained here have one",
                field="run",
                value=str(self.source),
                remedy="give what `windfire import-model` wrote, or a bundle of it",
            )
        return model.to(self.device)

    def _finish(self) -> dict[str, Any]:
        progress = self.progress
        manifest = {
            "format": RUN_FORMAT,
            "settings": {**self.imported, "draft_head": self.settings.model_dump()},
            "seed": self.seed,
            "tokenizer_version": self.data.tokenizer_version,
            "items": items_fingerprint(self.data),
            "fingerprint": self.fingerprint,
            "steps": progress.step,
            "best_step": progress.best_step,
            "stopped_early": progress.stopped,
            "metrics": self.metrics,
            "seconds": round(progress.seconds, 3),
            "parameters": sum(parameter.numel() for parameter in self.model.drafting.parameters()),
        }
        with staged_directory(self.out / "model") as staged:
            write_json_atomically(staged / "config.json", self.model.config.to_dict())
            ExternalModel.load(self.source / "model").save(staged)
            save_file(
                {name: value.cpu().contiguous() for name, value in self.best.items()}, staged / "weights.safetensors"
            )
        write_json_atomically(self.out / "manifest.json", manifest)
        return manifest


def pairs(sequences: Sequences) -> npt.NDArray[np.int64]:
    """(N, 2) where a user's events begin, and a training event that has others of the user before it.

    Raises:
        DataError: there is none.
    """
    starts, counts = sequences.offsets[:-1], sequences.train_end.astype(np.int64)
    each = np.maximum(counts - 1, 0)
    begin = np.repeat(starts, each)
    within = np.arange(len(begin)) - np.repeat(np.cumsum(each) - each, each)
    if not len(begin):
        raise DataError(
            "no user has two training events: there is no history to learn from",
            field="train_end",
            value=int(counts.max(initial=0)),
            remedy="give a log with longer histories, or another split",
        )
    return np.stack([begin, begin + within + 1], axis=1)


def _read_source(source: Path, data: PreparedData) -> dict[str, Any]:
    """What the import said of the model, from a run's or a bundle's manifest."""
    manifest, external = source / "manifest.json", source / "model" / EXTERNAL
    if not manifest.is_file() or not external.is_file():
        raise DataError(
            "no imported model here",
            field="run",
            value=str(source),
            remedy="run `windfire import-model` first, and give its --out",
        )
    value = read_json(manifest)
    if value["tokenizer_version"] != data.tokenizer_version:
        raise VersionMismatchError(
            f"the model writes semantic IDs {value['tokenizer_version']}",
            field="tokenizer_version",
            value=data.tokenizer_version,
            remedy=f"give the work directory that the import wrote: {source / 'work'}",
        )
    settings = value.get("settings") or value["config"]["settings"]
    return {"imported": settings["imported"]}
