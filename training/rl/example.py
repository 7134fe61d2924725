"""The smallest trainer for the core: a softmax policy over a few items per prompt. A pattern to copy.

Rollout and reward need NumPy only, so that their processes start without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from training.rl.wire import Arrays

_EPSILON = 1e-6


class BanditRollout:
    """Draws items independently from the softmax of a prompt's logits."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._group = int(options["group"])
        self._logits = np.zeros((0, 0))

    def load(self, weights: Arrays) -> None:
        """Take the logits. (prompts, items)."""
        self._logits = weights["logits"]

    def roll(self, prompt_ids: NDArray[np.int64], weights_version: int, seeds: NDArray[np.int64]) -> Arrays:
        """Items (n, G) and their log-probabilities (n, G, 1)."""
        del weights_version
        logits = self._logits[prompt_ids]
        shifted = logits - logits.max(1, keepdims=True)
        log_probs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))  # (n, items)
        items = np.stack([self._draw(row, int(seed)) for row, seed in zip(log_probs, seeds, strict=True)])
        return {"items": items, "log_probs": np.take_along_axis(log_probs, items, 1)[..., None]}

    def _draw(self, log_probs: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
        bounds = np.exp(log_probs).cumsum()
        drawn = np.random.default_rng(seed).random(self._group) * bounds[-1]
        items = np.searchsorted(bounds, drawn, side="right")
        # A product may round up to the last bound.
        chosen: NDArray[np.int64] = items.clip(max=len(bounds) - 1).astype(np.int64)
        return chosen  # (G,)


class BanditReward:
    """1 for the prompt's own item, which is its id modulo the number of items, else 0."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._items = int(options["items"])

    def score(self, groups: Arrays) -> Arrays:
        """Rewards and advantages normalised within each group. (n, G)."""
        rewards = (groups["items"] == groups["prompt_ids"][:, None] % self._items).astype(np.float64)
        centred = rewards - rewards.mean(1, keepdims=True)
        return {"rewards": rewards, "advantages": centred / (rewards.std(1, keepdims=True) + _EPSILON)}


class BanditLearner:
    """Adam on one logit per prompt and item, in float64."""

    def __init__(self, options: dict[str, Any]) -> None:
        import torch

        self._loss = options.get("loss", "tis")
        shape = (int(options["prompts"]), int(options["items"]))
        self._logits = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        self._optimiser = torch.optim.Adam([self._logits], lr=float(options.get("rate", 0.1)))

    @property
    def done(self) -> bool:
        """Never before the plan's end."""
        return False

    def step(self, batch: Arrays) -> dict[str, float]:
        """One step; returns the loss and the mean reward."""
        import torch

        from training.rl.losses import policy_loss

        rows = torch.from_numpy(batch["prompt_ids"])
        log_probs = self._logits[rows].log_softmax(1).gather(1, torch.from_numpy(batch["items"]))  # (n, G)
        old, advantages = (torch.from_numpy(batch[name]) for name in ("log_probs", "advantages"))
        loss = policy_loss(self._loss, log_probs[..., None], old, advantages)
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        return {"loss": loss.item(), "reward": float(batch["rewards"].mean())}

    def weights(self) -> Arrays:
        """The logits. (prompts, items)."""
        return {"logits": self._logits.detach().numpy().copy()}

    def state(self) -> Arrays:
        """The logits and Adam's moments and step."""
        slots = self._optimiser.state_dict()["state"].get(0, {})
        return self.weights() | {f"adam.{name}": value.numpy().copy() for name, value in slots.items()}

    def restore(self, state: Arrays) -> None:
        """Go back to what `state` returned."""
        import torch

        with torch.no_grad():
            self._logits.copy_(torch.from_numpy(state["logits"]))
        slots = {
            name.removeprefix("adam."): torch.from_numpy(value)
            for name, value in state.items()
            if name.startswith("adam.")
        }
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": {0: slots} if slots else {}, "param_groups": groups})
