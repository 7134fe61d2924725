"""The arms of a canary: who was assigned to which bundle, and what came of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from recsys.errors import DataError
from recsys.evaluation.ratios import difference, ratio
from recsys.event_log import read_events, read_exposures
from serving.lifecycle.arms import CANARY_ARM, CONTROL_ARM, EXPERIMENT
from windfire.states import ACTIONS, logs, spoken

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt


class _Answer(NamedTuple):
    """One exposure of an assigned unit."""

    arm: str
    unit: str
    time: int
    bundle: str
    served_by: str
    empty: bool


def report_canary(states: Sequence[Path], *, version: str | None) -> dict[str, Any]:
    """Compare the arms from the canary's first answer to its last.

    Arms are as assigned: what the served bundle had to answer in the canary's place counts as the canary's, and as a
    failure of it.

    Args:
        states: state directories of servers.
        version: of the canary; None = the newest that answered.

    Returns:
        Facts by name, and the columns `control`, `canary` and `difference` with measures by name.

    Raises:
        DataError: no canary has answered, or not this one.
    """
    answers = dict(_answers(states))
    version = version or _newest(answers.values())
    theirs = [each for each in answers.values() if each.arm == CANARY_ARM and each.bundle == version]
    if not theirs:
        raise DataError(
            "no canary has answered",
            field="version",
            value=version,
            remedy="set one with `windfire bundles canary`, and give the state directories of the servers",
        )
    first, last = min(each.time for each in theirs), max(each.time for each in theirs)
    kept = {request: each for request, each in answers.items() if first <= each.time <= last}
    counts = {action: _counted(states, kept, action) for action in ACTIONS}
    columns: dict[str, dict[str, Any]] = {}
    for arm in (CONTROL_ARM, CANARY_ARM):
        columns[arm] = _of_arm([each for each in kept.values() if each.arm == arm], version)
        for action in ACTIONS:
            columns[arm] |= spoken(f"{action}s_per_answer", ratio(*counts[action][arm]))
    columns["difference"] = {}
    for action in ACTIONS:
        columns["difference"] |= spoken(
            f"{action}s_per_answer", difference(counts[action][CANARY_ARM], counts[action][CONTROL_ARM])
        )
    return {"canary": version, "first": first, "last": last, "columns": columns}


def _newest(answers: Iterable[_Answer]) -> str | None:
    """The bundle that gave the canary arm's newest answer of its own, and not the control's in its place."""
    control = version = None
    for each in sorted(answers, key=lambda each: each.time):
        if each.arm == CONTROL_ARM:
            control = each.bundle
        elif each.bundle != control:
            version = each.bundle
    return version


def _of_arm(answers: Sequence[_Answer], version: str | None) -> dict[str, Any]:
    tiers = Counter(each.served_by for each in answers)
    canary = [each for each in answers if each.arm == CANARY_ARM]
    return {
        "answers": len(answers),
        "units": len({each.unit for each in answers}),
        "failures": sum(each.bundle != version for each in canary),
        "empty": sum(each.empty for each in answers),
        **{f"tier.{tier}": count / len(answers) for tier, count in sorted(tiers.items())},
    }


def _counted(
    states: Sequence[Path], answers: dict[str, _Answer], action: str
) -> dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """By arm: (U,) events that name an answer of a unit, and (U,) answers of the unit."""
    shown: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for answer in answers.values():
        shown[answer.arm, answer.unit][1] += 1
    for folder in logs(states, "events"):
        for _, event in read_events(folder):
            found = answers.get(event["request_id"] or "") if event["action"] == action else None
            if found is not None:
                shown[found.arm, found.unit][0] += 1
    by_arm = {}
    for arm in (CONTROL_ARM, CANARY_ARM):
        rows = np.array([pair for (its, _), pair in shown.items() if its == arm], dtype=np.float64).reshape(-1, 2)
        by_arm[arm] = (rows[:, 0], rows[:, 1])
    return by_arm


def _answers(states: Sequence[Path]) -> Iterator[tuple[str, _Answer]]:
    """Request id and answer of whoever was assigned."""
    for folder in logs(states, "exposures"):
        for _, exposure in read_exposures(folder):
            arm = exposure.arms.get(EXPERIMENT)
            if arm is not None:
                unit = exposure.user_id or exposure.request_id
                yield (
                    exposure.request_id,
                    _Answer(arm, unit, exposure.time, exposure.bundle_version, exposure.served_by, not exposure.items),
                )
