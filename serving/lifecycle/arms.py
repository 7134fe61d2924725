"""Who is drawn into which bundle, whatever tier answers then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from recsys.bundle.pointers import Share
    from serving.engine import EngineVersions

EXPERIMENT: Final = "bundle"
"""The name under which `arms` says who was assigned to which bundle."""

CANARY_ARM: Final = "canary"
CONTROL_ARM: Final = "control"


def arm_of(canary: Share | None, unit: str | None) -> str | None:
    """The arm of a user or request; None where there is no canary, or nobody to draw."""
    if canary is None or unit is None:
        return None
    return CANARY_ARM if canary.takes(unit) else CONTROL_ARM


class LastAssignment:
    """Assigns as the engine does; while the engine cannot be asked, as it did when it last could."""

    def __init__(self) -> None:
        self._canary: Share | None = None

    def arms(self, versions: EngineVersions | None, unit: str | None) -> dict[str, str]:
        """Experiment to assigned arm, as in an answer of the engine.

        Args:
            versions: what the engine runs; None = it cannot be asked.
            unit: who is drawn.
        """
        if versions is not None:
            self._canary = versions.canary_share
        arm = arm_of(self._canary, unit)
        return {} if arm is None else {EXPERIMENT: arm}
