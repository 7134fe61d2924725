"""Random numbers of a step: functions of seed and step, the same whichever process asks."""

from __future__ import annotations

import numpy as np

_SEEDS = 2**62


def block_seed(seed: int, step: int, block: int, blocks: int) -> int:
    """The seed of one block's rollouts."""
    seeds = np.random.default_rng([seed, step]).integers(_SEEDS, size=blocks)
    return int(seeds[block])


def noise_generator(seed: int, step: int, blocks: int, before: int = 0) -> np.random.Generator:
    """The generator of a step's reward noise, behind the draws of the `before` groups that come first."""
    rng = np.random.default_rng([seed, step])
    rng.integers(_SEEDS, size=blocks)
    rng.random(before)
    return rng
