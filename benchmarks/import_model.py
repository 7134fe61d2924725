"""`windfire bench import-model`: a model of another project's form, made on the spot, imported, decoded three ways."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.example_generator import make_example
from benchmarks.figures import Figure, Report, environment, now
from recsys.bundle import Registry, load_decoder, publish_run
from recsys.datasets.prepared import PreparedData
from recsys.decoding.eligibility import Eligibility
from recsys.imported.importer import WORK, import_model
from training.draft_head.settings import HeadSettings
from training.draft_head.trainer import fit_head

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from recsys.decoding.decoder import Decoder

DECODERS: Final = ("beam", "nezha", "speculative")
_K: Final = 10
_HIDDEN: Final = 0.3  # share of the catalogue that may not be shown


@dataclass(frozen=True, slots=True)
class ImportSettings:
    """What is made and measured.

    Attributes:
        family: whose form the model has.
        items: of the catalogue.
        users: with a walk each.
        width: of the model.
        model_steps: of its training.
        head_steps: of the head's fitting.
        beam: width.
        requests: answered and timed by each decoder.
    """

    family: str = "minionerec"
    items: int = 240
    users: int = 600
    width: int = 64
    model_steps: int = 600
    head_steps: int = 600
    beam: int = 50
    requests: int = 300

    @classmethod
    def quick(cls, family: str) -> ImportSettings:
        """The same measurement cut down to under two minutes."""
        return cls(family, items=60, users=100, width=32, model_steps=60, head_steps=60, requests=60)


def bench(folder: Path, settings: ImportSettings, command: str, *, say: Callable[[str], None]) -> Report:
    """Make, import, fit, publish, decode.

    Args:
        folder: for everything that is made; stays, to try the commands on.
        settings: sizes.
        command: the command line, for the report.
        say: takes a line about each stage.
    """
    started = now()
    say(f"training a {settings.family} model of {settings.items} items")
    example = make_example(
        folder,
        family=settings.family,
        items=settings.items,
        users=settings.users,
        steps=settings.model_steps,
        width=settings.width,
    )
    say("importing it")
    run = folder / "run"
    imported = import_model(settings.family, example.model, sids=example.sids, work=example.work, out=run)
    data = PreparedData.load(run / WORK)
    say("fitting the head")
    every = max(settings.head_steps // 6, 1)
    chosen = HeadSettings(steps=settings.head_steps, evaluate_every=every, evaluate_beam=settings.beam)
    fit_head(run, data, chosen, folder / "head", seed=1)
    registry = Registry(folder / "registry")
    publish_run(registry, run=folder / "head", work=run / WORK, created=datetime.now(UTC))
    say("decoding")
    bundle = registry.open_current()
    decoders = {name: load_decoder(bundle, name) for name in DECODERS}
    figures = [Figure(f"import.{settings.family}.difference", imported.difference, "log-probability")]
    figures += _decoded(settings, decoders, data)
    return Report(command, asdict(settings), (1,), figures, started, environment())


@dataclass(slots=True)
class _Answers:
    """What one decoder answered: with a part of the catalogue hidden, and with all of it."""

    hidden: list[npt.NDArray[np.int32]] = field(default_factory=list)
    free: list[npt.NDArray[np.int32]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    ineligible: int = 0

    def ask(self, decoder: Decoder, history: npt.NDArray[np.int32], shown: npt.NDArray[np.bool_], beam: int) -> None:
        """One request in both ways; the first is timed."""
        history_only, both = Eligibility(None, [history]), Eligibility(shown, [history])
        begun = time.perf_counter()
        found = decoder.decode([history], k=_K, beam=beam, eligibility=both).ranked[0].items
        self.seconds.append(time.perf_counter() - begun)
        self.hidden.append(found)
        self.ineligible += int((~shown[found] | np.isin(found, history)).sum())
        self.free.append(decoder.decode([history], k=_K, beam=beam, eligibility=history_only).ranked[0].items)


def _decoded(settings: ImportSettings, decoders: dict[str, Decoder], data: PreparedData) -> list[Figure]:
    _, histories, targets = data.sequences.targets("test")
    rows = np.unique(np.linspace(0, len(histories) - 1, min(settings.requests, len(histories))).astype(int))
    rng = np.random.default_rng(1)
    shown = rng.random(len(data.codes)) >= _HIDDEN
    answers = {name: _Answers() for name in decoders}
    for row in rows:
        for name in rng.permutation(list(decoders)).tolist():
            answers[name].ask(decoders[name], histories[row], shown, settings.beam)
    figures = []
    for name, found in answers.items():
        gains = _gains(found.free, targets[rows])
        pairs = list(zip(answers["beam"].hidden, found.hidden, strict=True))
        values = {
            "top1": (float(np.mean([one[:1].tolist() == other[:1].tolist() for one, other in pairs])), "share"),
            "top10": (float(np.mean([len(np.intersect1d(one, other)) / _K for one, other in pairs])), "share"),
            f"recall@{_K}": (float((gains > 0).mean()), "share"),
            f"ndcg@{_K}": (float(gains.mean()), "share"),
            "ineligible": (float(found.ineligible), "items"),
            "ms": (1e3 * float(np.median(found.seconds)), "ms"),
        }
        prefix = f"import.{settings.family}.{name}"
        figures += [Figure(f"{prefix}.{key}", value, unit, n=len(rows)) for key, (value, unit) in values.items()]
    return figures


def _gains(lists: Sequence[npt.NDArray[np.int32]], targets: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """(N,) 1 / log2(rank + 1) where the target is listed."""
    hits = [np.flatnonzero(items == target) for items, target in zip(lists, targets, strict=True)]
    return np.array([(1.0 / np.log2(hit + 2.0)).sum() for hit in hits])
