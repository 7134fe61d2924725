"""What a trainer plugs into the core. Nothing here knows what a prompt or an item is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from recsys.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from training.rl.wire import Arrays


class RolloutWorker(Protocol):
    """Draws groups of samples. Lives in a process of its own, where there may be several."""

    def load(self, weights: Arrays) -> None:
        """Take these weights for all later rollouts."""

    def roll(self, prompt_ids: NDArray[np.int64], weights_version: int, seeds: NDArray[np.int64]) -> Arrays:
        """Draw one group for each prompt.

        A group may depend on the weights, its prompt and its seed only: not on the worker, on earlier calls or on the
        other prompts of the call. Then a run does not depend on which worker did what.

        Args:
            prompt_ids: (n,)
            weights_version: of the weights last loaded.
            seeds: of each group's random numbers. (n,)

        Returns:
            Arrays with n rows, such as items (n, G) and log_probs at rollout (n, G, L).
        """


class RewardWorker(Protocol):
    """Judges groups, without a state. Lives in a process of its own."""

    def score(self, groups: Arrays) -> Arrays:
        """Judge whole groups.

        Args:
            groups: what `roll` returned, with prompt_ids (n,), epochs (n,) and rollout_versions (n,).

        Returns:
            Arrays with n rows that are added to the groups, such as rewards (n, G) and advantages (n, G).
        """


class Learner(Protocol):
    """Trains. Lives in a process of its own, of which there is one."""

    @property
    def done(self) -> bool:
        """Whether the run is to end before its plan does. Asked after every step; then the state is kept."""

    def step(self, batch: Arrays) -> dict[str, float]:
        """Take one training step on whole groups, in the order of the stream.

        Returns:
            Numbers for the log.
        """

    def weights(self) -> Arrays:
        """What a rollout worker needs."""

    def state(self) -> Arrays:
        """All that the next step depends on: weights, optimiser, random numbers."""

    def restore(self, state: Arrays) -> None:
        """Go back to what `state` returned."""


@dataclass(frozen=True, slots=True)
class Part:
    """How a process makes its worker.

    Attributes:
        factory: "package.module:callable"; called with options and local values, returns the worker or learner.
        options: JSON values that decide the weights.
        local: JSON values that do not, such as paths; they are added to the options, and a run may go on with others.
        threads: for OpenMP and the BLAS of the process.
    """

    factory: str
    options: dict[str, Any] = field(default_factory=dict)
    local: dict[str, Any] = field(default_factory=dict)
    threads: int = 1

    def __post_init__(self) -> None:
        module, colon, name = self.factory.partition(":")
        if not (module and colon and name):
            raise DataError(
                "not a factory", field="factory", value=self.factory, remedy='write "package.module:callable"'
            )
