"""The reward worker of a run over several processes; without torch, so that its process starts at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from training.rere.draws import noise_generator
from training.rere.rewards import judged

if TYPE_CHECKING:
    from training.rl.wire import Arrays


class RereReward:
    """Judges blocks of groups.

    Args:
        options: `judging` as `training.rere.rewards.judged` takes it, the run's `seed`, and `blocks` per step.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._judging = options["judging"]
        self._seed, self._blocks = int(options["seed"]), int(options["blocks"])

    def score(self, groups: Arrays) -> Arrays:
        """Rewards and advantages (n, C, G) of n blocks of C groups: items (n, C, G), targets (n, C)."""
        found = [
            self._block(int(place), items, targets)
            for place, items, targets in zip(groups["prompt_ids"], groups["items"], groups["targets"], strict=True)
        ]
        rewards, advantages = zip(*found, strict=True)
        return {"rewards": np.stack(rewards), "advantages": np.stack(advantages)}

    def _block(self, place: int, items: Any, targets: Any) -> tuple[Any, Any]:
        step, block = divmod(place, self._blocks)
        rng = noise_generator(self._seed, step, self._blocks, before=block * len(items))
        return judged(items, targets, rng, **self._judging)
