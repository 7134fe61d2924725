"""Data, trained weights and prompts that the peers share."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import torch

from benchmarks.figures import ROOT
from benchmarks.quality import Quality
from benchmarks.quality_arms import Cases
from benchmarks.quality_settings import QualitySettings
from benchmarks.settings_file import merged
from recsys.backends import choose_backbone
from recsys.bundle.loading import load_model
from recsys.datasets.prepared import PreparedData
from recsys.decoding.trie import SidTrie
from recsys.errors import DataError
from recsys.models import CompactRecommender, FlatRecommender, RecommenderConfig, TokenRecommender
from recsys.storage import sha256_parts
from training.recommender.settings import TrainSettings
from training.recommender.trainer import data_fingerprint, item_features, train

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from benchmarks.decoding_parts.settings import PeersSettings
    from recsys.models import Recommender

    History = npt.NDArray[np.int32]

# What a model changes in the settings of its shape. Medusa: every level reads the same state, nothing is fed back.
# Parallel multi-token prediction: a state per level, nothing is fed back.
MODELS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "token": ("token", {}),
    "medusa": ("token", {"transition": "none", "placeholders": False}),
    "mtp": ("token", {"transition": "none"}),
    "compact": ("compact", {}),
    "flat": ("compact", {"shape": "flat"}),
}


@dataclass(frozen=True, slots=True)
class Lab:
    """What is measured on.

    Attributes:
        data: prepared.
        trie: of its semantic IDs.
        models: trained, frozen, by name.
        cases: test users, spread evenly.
        long: histories of exactly the length that times are taken with.
        steps: of the optimiser, by model.
        cpu_seconds: of the training, by model.
    """

    data: PreparedData
    trie: SidTrie
    models: dict[str, Recommender]
    cases: Cases
    long: list[History]
    steps: dict[str, int]
    cpu_seconds: dict[str, float]

    def token(self, name: str = "token") -> TokenRecommender:
        """A model of the token shape."""
        model = self.models[name]
        if not isinstance(model, TokenRecommender):
            raise DataError("not of the token shape", field="models", value=name)
        return model

    def compact(self) -> CompactRecommender:
        """The model whose head writes behind one position per item."""
        model = self.models["compact"]
        if not isinstance(model, CompactRecommender):
            raise DataError("not of the compact shape", field="models", value="compact")
        return model

    def flat(self) -> FlatRecommender:
        """The two-tower model."""
        model = self.models["flat"]
        if not isinstance(model, FlatRecommender):
            raise DataError("not of the flat shape", field="models", value="flat")
        return model


def prepare(settings: PeersSettings, work: Path, *, say: Callable[[str], None]) -> PreparedData:
    """Import the data set and run the offline jobs, unless this was done.

    Raises:
        DataError: the data set is not there.
    """
    quality = QualitySettings.load()
    chosen = quality.datasets[settings.dataset]
    if settings.text:
        chosen = chosen.model_copy(update={"offline": merged(chosen.offline, {"text": {"model": settings.text}})})
    quality = quality.model_copy(update={"datasets": {settings.dataset: chosen}})
    sources = Path(os.environ.get("WINDFIRE_DATA", ROOT.parent / "shared" / "data"))
    Quality(quality, work, sources, say).prepare(settings.dataset)
    return PreparedData.load(work / "data" / settings.dataset / "prepared")


def open_lab(
    data: PreparedData,
    settings: PeersSettings,
    work: Path,
    *,
    say: Callable[[str], None],
    names: Mapping[str, tuple[str, dict[str, Any]]] = MODELS,
) -> Lab:
    """Train what is not trained yet.

    Args:
        data: prepared.
        settings: of peers.yaml.
        work: keeps the runs.
        say: told in one line what was done.
        names: of the models, each a shape of the settings and what it changes.

    Raises:
        DataError: no user has a history as long as the times want.
    """
    models: dict[str, Recommender] = {}
    steps, seconds = {}, {}
    for name, (shape, changes) in names.items():
        chosen = TrainSettings.parse(merged(settings.train[shape], {"model": changes}))
        key = sha256_parts(
            [data_fingerprint(data), json.dumps(chosen.model_dump(), sort_keys=True), str(settings.seed)]
        )
        out = work / "runs" / f"{name}-{key[:12]}"
        manifest = train(data, chosen, out, seed=settings.seed)
        loaded = load_model(out / "model", item_features(data, chosen), data.codebook_sizes)
        model = cast("Recommender", loaded)  # trained above, not imported
        model.freeze()
        models[name], steps[name], seconds[name] = model, manifest["steps"], manifest["cpu_seconds"]
        say(
            f"{name}: {manifest['steps']} steps, {manifest['cpu_seconds']:.0f} CPU s, "
            f"validation NDCG@10 {manifest['metrics']['valid.ndcg@10']:.4f}"
        )
    trie = SidTrie.build(data.codes, data.codebook_sizes)
    long = long_histories(data, settings.history)
    return Lab(data, trie, models, Cases.of(data, settings.users), long, steps, seconds)


def long_histories(data: PreparedData, length: int) -> list[History]:
    """The newest `length` items of every test history that has as many.

    Raises:
        DataError: there is none.
    """
    found = [history[-length:] for history in data.sequences.targets("test")[1] if len(history) >= length]
    if not found:
        raise DataError("no user has so long a history", field="history", value=length, remedy="choose a shorter one")
    return found


def untrained(lab: Lab, name: str, seed: int) -> TokenRecommender:
    """The token shape of the same sizes on our own backbone, untrained: for times that do not depend on the weights."""
    config = lab.token(name).config
    value = config.to_dict() | {"backbone": "own", "backbone_config": {}}
    torch.manual_seed(seed)
    settings = TrainSettings()
    model = TokenRecommender(RecommenderConfig.from_dict(value), item_features(lab.data, settings), choose_backbone)
    model.eval().freeze()
    return model
