"""A compressor as a run directory: resumable, with a manifest that says what the short vectors keep."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save

from recsys.backends.compressor_onnx import export_compressor
from recsys.bundle.compressor import save_compressor
from recsys.bundle.provenance import code_version
from recsys.errors import DataError
from recsys.storage import read_json, sha256_parts, staged_directory, write_bytes_atomically, write_json_atomically
from training.progress import StepBar, cpu_seconds
from training.recommender.metrics import MetricsLog
from training.smec.controls import PrincipalComponents, Truncation
from training.smec.course import CompressorCourse
from training.smec.data import VectorData
from training.smec.fitting import Fitting
from training.smec.measuring import measure

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from training.smec.course import Reducer
    from training.smec.settings import SmecSettings

RUN_FORMAT: Final = "windfire.compressor/1"
_LEAST_SPLIT: Final = 2  # labelled queries


def train_smec(
    data: VectorData, settings: SmecSettings, out: Path, *, seed: int, show_progress: bool = False
) -> dict[str, Any]:
    """Train a compressor; a finished run with the same inputs is not repeated.

    Args:
        data: cached vectors, with labels or without.
        settings: of the training.
        out: run directory; a checkpoint found there is continued.
        seed: of batches, draws and the held-out queries.
        show_progress: whether to draw a progress bar.

    Returns:
        The run's manifest.

    Raises:
        ConfigError: the vectors' width cannot be halved so often.
        DataError: a checkpoint of other inputs in `out`, or too few vectors.
    """
    trainer = SmecTrainer(data, settings, out, seed=seed, show_progress=show_progress)
    manifest = out / "manifest.json"
    if manifest.exists() and (found := read_json(manifest))["fingerprint"] == trainer.fingerprint:
        return dict(found)
    return trainer.run()


class SmecTrainer:
    """One training; arguments and errors as `train_smec`."""

    def __init__(
        self, data: VectorData, settings: SmecSettings, out: Path, *, seed: int, show_progress: bool = False
    ) -> None:
        self.settings, self.out, self.seed, self.show_progress = settings, out, seed, show_progress
        if settings.threads:
            torch.set_num_threads(settings.threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.fingerprint = sha256_parts([data.fingerprint(), settings.model_dump_json(), str(seed)])
        self.data = data
        self.train, self.held = data, None
        if data.judgements is not None and settings.holdout and len(data.judgements) >= _LEAST_SPLIT:
            self.train, self.held = data.split(settings.holdout, seed=seed)
        self.course = CompressorCourse(torch.from_numpy(self.train.table).to(device), settings)
        self.fitting = Fitting(self.course, self.train, settings, seed=seed)
        self.seconds = self.cpu_seconds = 0.0

    def run(self) -> dict[str, Any]:
        """Train until the last step, then write the run directory; returns its manifest."""
        self.out.mkdir(parents=True, exist_ok=True)
        checkpoint = self.out / "checkpoint.safetensors"
        for half in self.out.glob(f".{checkpoint.name}.*.tmp"):  # what a run wrote when it was killed
            half.unlink(missing_ok=True)
        if checkpoint.exists():
            self._restore(checkpoint)
        log = MetricsLog(self.out, step=self.fitting.steps_done)
        bar = StepBar(self.fitting.total, self.fitting.steps_done, visible=self.show_progress)
        try:
            with bar as tick:
                self._loop(checkpoint, log, tick)
        finally:
            log.close()
        return self._finish()

    def _loop(self, checkpoint: Path, log: MetricsLog, tick: Callable[[str], None]) -> None:
        fitting = self.fitting
        started = time.monotonic() - self.seconds, cpu_seconds() - self.cpu_seconds
        while not fitting.done:
            loss = fitting.advance()
            self.seconds, self.cpu_seconds = time.monotonic() - started[0], cpu_seconds() - started[1]
            if fitting.steps_done % self.settings.checkpoint_every == 0:
                log.append(fitting.steps_done, {"loss": loss, "phase": fitting.phase, "cpu_seconds": self.cpu_seconds})
                self._save(checkpoint)
            tick(f"phase {fitting.phase + 1} of {len(self.course.phases)} loss {loss:.4f}")

    def _save(self, path: Path) -> None:
        tensors = {f"model/{name}": value for name, value in self.course.module.state_dict().items()}
        tensors |= {f"fitting/{name}": value for name, value in self.fitting.state().items()}
        metadata = {
            "fingerprint": self.fingerprint,
            "seconds": repr(self.seconds),
            "cpu_seconds": repr(self.cpu_seconds),
        }
        owned = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
        write_bytes_atomically(path, save(owned, metadata=metadata))

    def _restore(self, path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            if metadata["fingerprint"] != self.fingerprint:
                raise DataError(
                    "the checkpoint belongs to other vectors, settings or another seed",
                    field="checkpoint",
                    value=str(path),
                    remedy="choose another --out, or remove this folder to start again",
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        parts = {
            folder: {name.removeprefix(f"{folder}/"): t for name, t in tensors.items() if name.startswith(f"{folder}/")}
            for folder in ("model", "fitting")
        }
        self.course.module.load_state_dict(parts["model"])
        self.fitting.restore(parts["fitting"])
        self.seconds, self.cpu_seconds = float(metadata["seconds"]), float(metadata["cpu_seconds"])

    def _finish(self) -> dict[str, Any]:
        model = self.course.module.eval()
        manifest = {
            "format": RUN_FORMAT,
            "settings": self.settings.model_dump(),
            "seed": self.seed,
            "fingerprint": self.fingerprint,
            "dimension": self.data.dimension,
            "widths": list(model.widths),
            "vectors": len(self.data.documents),
            "labelled_queries": len(self.train.queries),
            "steps": self.fitting.steps_done,
            "metrics": self._metrics(),
            "seconds": round(self.seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "code": code_version(),
        }
        with staged_directory(self.out / "model") as staged:
            save_compressor(staged, model)
            export_compressor(model, staged)
        write_json_atomically(self.out / "manifest.json", manifest)
        return manifest

    def _metrics(self) -> dict[str, float]:
        """Per width what the compressor, truncation and PCA keep; with held-out queries their nDCG and Recall, too."""
        halvings, documents = self.settings.halvings, self.data.documents
        methods: dict[str, Reducer] = {
            "smec": self.course,
            "truncation": Truncation(self.data.dimension, halvings),
            "pca": PrincipalComponents(self.train.table, halvings),
        }
        rng = np.random.default_rng([self.seed, len(documents)])
        rows = np.sort(rng.permutation(len(documents))[: self.settings.evaluate_rows])
        measured = self.held or VectorData.unlabelled(documents)  # queries that were trained on say nothing
        values: dict[str, float] = {}
        for width in self.course.widths:
            for name, method in methods.items():
                found = measure(method, measured, rows, width)
                values |= {f"d{width}.{name}.{metric}": float(gains.mean()) for metric, gains in found.items()}
        return values
