"""The quality gate: a bundle that measures worse than the one that is served does not take its place unasked."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from recsys.errors import GateError
from recsys.storage import sha256_parts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from recsys.bundle.manifest import BundleManifest
    from recsys.datasets.prepared import PreparedData

EVERY_OTHER: Final = "*"
"""The name under which the tolerance of all metrics stands that have none of their own."""

TOLERANCE: Final = 0.05
"""Largest fall by default, as a share of the served bundle's value: several times what another seed changes."""

Incomparable = Literal["pass", "refuse"]


@dataclass(frozen=True, slots=True)
class Gate:
    """What a new bundle must keep.

    Attributes:
        tolerances: metric to the largest fall, as a share of the served bundle's value; `*` = every other metric. A
            metric without one, where there is no `*`, is not looked at.
        incomparable: what happens to a bundle that cannot be compared.
    """

    tolerances: Mapping[str, float] = field(default_factory=lambda: {EVERY_OTHER: TOLERANCE})
    incomparable: Incomparable = "pass"

    def tolerance(self, metric: str) -> float | None:
        """Of a metric; None = it is not looked at."""
        return self.tolerances.get(metric, self.tolerances.get(EVERY_OTHER))


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric of both bundles; higher is better for every metric of a manifest.

    Attributes:
        metric: its name.
        served: value of the bundle that is served.
        candidate: of the one that would take its place.
        tolerance: largest allowed fall, as a share of `served`.
    """

    metric: str
    served: float
    candidate: float
    tolerance: float

    @property
    def held(self) -> bool:
        """Whether the fall is within the tolerance; a value that is no number has fallen."""
        return isfinite(self.candidate) and self.candidate >= self.served - self.tolerance * abs(self.served)

    def __str__(self) -> str:
        change = (self.candidate - self.served) / abs(self.served) if self.served else self.candidate - self.served
        return f"{self.metric} {self.served:.4f} -> {self.candidate:.4f} ({change:+.1%}, allowed {-self.tolerance:.1%})"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says.

    Attributes:
        passed: whether the candidate may be served.
        comparisons: what was compared.
        note: why nothing could be compared; empty where something was.
    """

    passed: bool
    comparisons: tuple[Comparison, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        return self.note or "; ".join(str(each) for each in self.comparisons)


def judge(candidate: BundleManifest, served: BundleManifest | None, gate: Gate) -> Verdict:
    """Compare the metrics of two manifests.

    They are comparable where both were measured on the same held-out events (`BundleManifest.measured_on`) and the
    candidate has every metric of the served bundle that the gate looks at.

    Args:
        candidate: of the bundle that would be served.
        served: of the one that is; None before the first.
        gate: tolerances.
    """
    if served is None or served.version == candidate.version:
        return Verdict(True, note="nothing to compare: no other bundle is served, or it is damaged")
    wanted = {metric: limit for metric in served.metrics if (limit := gate.tolerance(metric)) is not None}
    if candidate.measured_on is None or candidate.measured_on != served.measured_on:
        return _incomparable(gate, f"{served.version} was measured on other held-out events, or on none that are named")
    missing = sorted(set(wanted) - set(candidate.metrics))
    if missing or not wanted:
        what = f"it lacks {', '.join(missing)}" if missing else f"{served.version} has no metric that the gate looks at"
        return _incomparable(gate, what)
    found = tuple(
        Comparison(metric, served.metrics[metric], candidate.metrics[metric], limit)
        for metric, limit in sorted(wanted.items())
    )
    return Verdict(all(each.held for each in found), found)


def _incomparable(gate: Gate, why: str) -> Verdict:
    return Verdict(gate.incomparable == "pass", note=f"not comparable: {why}")


def refused(candidate: str, served: str | None, verdict: Verdict) -> GateError:
    """The error that names the figures."""
    return GateError(
        f"the bundle is not served in the place of {served}: {verdict}",
        field="version",
        value=candidate,
        remedy="look at it in shadow mode, allow a larger fall (WINDFIRE_GATE_TOLERANCES), or force it with a reason",
    )


def basis_of(data: PreparedData, settings: Mapping[str, Any]) -> str | None:
    """Name the held-out events that a run of these settings was measured on; None where there are none.

    The name depends on the items' ids, the users' events, the split and the number of users that were asked, and not
    on semantic IDs or vectors: bundles of several tokenizers are compared on the same events.

    Args:
        data: the work directory of the run.
        settings: of the run; the innermost course of training decides how many users were asked.
    """
    sequences = data.sequences
    targets = int((sequences.valid_index >= 1).sum())
    if not targets:
        return None
    inner = next((settings[name] for name in ("draft_head", "rere") if name in settings), settings)
    users = min(targets, int(inner.get("evaluate_users", targets)))
    arrays = (sequences.items, sequences.offsets, sequences.train_end, sequences.valid_index)
    ids: list[str] = data.items["item_id"].to_pylist()
    return sha256_parts([*ids, *(np.ascontiguousarray(array).tobytes() for array in arrays), str(users)])
