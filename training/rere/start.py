"""What a run starts from, and its rollouts: a pure function of weights, seed, step and block.

A block is the histories that are rolled out in one call. Rounding depends on what else a call holds, so blocks never
change: whoever rolls one out, in whatever order, gets the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch

from recsys.bundle.loading import load_model
from recsys.errors import ConfigError
from recsys.models import ItemFeatures
from recsys.storage import read_json, sha256_parts
from training.recommender.trainer import data_fingerprint
from training.recommender.warm_start import load_parent
from training.rere.candidates import Candidates, available_items
from training.rere.draws import block_seed
from training.rere.learning import rolled_groups
from training.rere.policy import Policy
from training.rere.samples import Samples

if TYPE_CHECKING:
    from pathlib import Path

    from recsys.datasets.prepared import PreparedData
    from training.rere.groups import Groups
    from training.rere.settings import RereSettings


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """A finished run, opened to be trained further.

    Attributes:
        data: that it was trained on.
        settings: of the reinforcement learning.
        seed: of the samples' order, the draws and the reward noise.
        policy: with the run's weights, on the GPU where there is one.
        candidates: what rollouts may show.
        samples: histories and targets.
        origin: the run's own settings.
        fingerprint: of all that decides the weights of the new run.
    """

    data: PreparedData
    settings: RereSettings
    seed: int
    policy: Policy
    candidates: Candidates
    samples: Samples
    origin: dict[str, Any]
    fingerprint: str

    @classmethod
    def load(cls, source: Path, data: PreparedData, settings: RereSettings, *, seed: int) -> Self:
        """Open a run; arguments and errors as `training.rere.trainer.train_rere`."""
        parent = load_parent(source, data)
        found = read_json(source / "manifest.json")
        if settings.threads:
            torch.set_num_threads(settings.threads)
        fingerprint = sha256_parts([data_fingerprint(data), settings.decisive, str(seed), parent.fingerprint])
        features = ItemFeatures(data.codes, data.text, data.collaborative, data.train_counts)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = load_model(source / "model", features, data.codebook_sizes).to(device)
        policy = Policy(model, data.codes, data.train_counts)
        if settings.hint_levels > policy.trie.levels:
            raise ConfigError(
                f"a semantic ID has {policy.trie.levels} codes",
                field="hint_levels",
                value=settings.hint_levels,
                remedy="give fewer codes as a hint",
            )
        available = available_items(data)
        return cls(
            data=data,
            settings=settings,
            seed=seed,
            policy=policy,
            candidates=Candidates(
                policy.trie, None if available.all() else available, exclude_history=settings.exclude_history
            ),
            samples=Samples(data.sequences, seed=seed, limit=model.config.max_history),
            origin=found["config"]["settings"] if "config" in found else found["settings"],
            fingerprint=fingerprint,
        )

    def roll_out(self, step: int, block: int) -> Groups:
        """Roll out one block of a step from the policy's weights as they are now; see `rolled_groups`."""
        settings = self.settings
        size = settings.batch // settings.blocks
        ids = self.samples.at(step, settings.batch)[block * size : (block + 1) * size]
        generator = torch.Generator(self.policy.device)
        generator.manual_seed(block_seed(self.seed, step, block, settings.blocks))
        return rolled_groups(self.policy, self.candidates, self.samples.requests(ids), ids, settings, generator)
