"""What a shadow answered beside what was shown."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from recsys.errors import DataError
from recsys.evaluation.ratios import ratio
from recsys.event_log import read_events, read_exposures
from serving.lifecycle.shadow_log import SHADOW_LOGS, read_shadow
from windfire.states import ACTIONS, logs, spoken

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from serving.lifecycle.shadow_log import ShadowList, ShadowRecord

_COLUMNS: Final = ("live", "shadow")


class _Asked(NamedTuple):
    """A request of a known user."""

    time: int
    record: ShadowRecord


class _Held(NamedTuple):
    """Later events of one user: how many, and how many of their items each list held."""

    events: int
    live: int
    shadow: int


def report_shadow(states: Sequence[Path], *, version: str | None, horizon: int) -> dict[str, Any]:
    """Compare both answers to the requests that a shadow was asked.

    Args:
        states: state directories of servers and engines.
        version: of the shadow; None = the newest that answered.
        horizon: microseconds after a request in which its user's events count.

    Returns:
        Facts by name, and the columns `live`, `shadow` and `both` with measures by name.

    Raises:
        DataError: no shadow has answered, or not this one.
    """
    records = [record for folder in logs(states, SHADOW_LOGS) for record in read_shadow(folder.parent)]
    newest = max(records, key=lambda record: record.time, default=None)
    chosen = version if newest is None or version is not None else newest.shadow.bundle
    records = [record for record in records if record.shadow.bundle == chosen]
    if not records:
        raise DataError(
            "no shadow has answered",
            field="version",
            value=chosen,
            remedy="set one with `windfire bundles shadow`, and give the state directory of whoever decodes",
        )
    columns: dict[str, dict[str, Any]] = {name: _of_lists([getattr(r, name) for r in records]) for name in _COLUMNS}
    columns["both"] = _of_pairs([record for record in records if not record.shadow.error])
    for action, by_user in _held(states, records, horizon).items():
        counts = np.array(list(by_user.values()), dtype=np.float64).reshape(-1, 3)
        columns["both"][f"{action}s_later"] = int(counts[:, 0].sum())
        for place, name in enumerate(_COLUMNS, start=1):
            columns[name] |= spoken(f"{action}s_held", ratio(counts[:, place], counts[:, 0]))
    return {
        "shadow": chosen,
        "served": sorted({record.live.bundle for record in records}),
        "requests": len(records),
        "columns": columns,
    }


def overlap(one: Sequence[str], other: Sequence[str]) -> float:
    """Share of the longer list that stands in both; 1 for two empty ones."""
    longer = max(len(one), len(other))
    return len(set(one) & set(other)) / longer if longer else 1.0


def rank_correlation(one: Sequence[str], other: Sequence[str]) -> float | None:
    """Spearman's, over the items of both lists; None with fewer than two of them."""
    places = {item: place for place, item in enumerate(item for item in other if item in set(one))}
    theirs = [places[item] for item in one if item in places]
    count = len(theirs)
    if count < 2:
        return None
    squares = sum((ours - place) ** 2 for ours, place in enumerate(theirs))
    return 1.0 - 6.0 * squares / (count * (count**2 - 1))


def _of_lists(lists: Sequence[ShadowList]) -> dict[str, Any]:
    answered = [each for each in lists if not each.error]
    tiers = Counter(each.served_by for each in answered)
    seconds = [each.seconds / each.batch for each in lists]
    return {
        "errors": len(lists) - len(answered),
        "empty": sum(not each.items for each in answered),
        "ineligible_items": sum(each.ineligible for each in answered),
        "ms_per_request_p50": float(np.percentile(seconds, 50)) * 1_000,
        "ms_per_request_p99": float(np.percentile(seconds, 99)) * 1_000,
        **{f"tier.{tier}": count / len(answered) for tier, count in sorted(tiers.items())},
    }


def _of_pairs(records: Sequence[ShadowRecord]) -> dict[str, Any]:
    pairs = [(record.live.items, record.shadow.items) for record in records]
    correlations = [found for pair in pairs if (found := rank_correlation(*pair)) is not None]
    return {
        "overlap": float(np.mean([overlap(*pair) for pair in pairs])) if pairs else None,
        "rank_correlation": float(np.mean(correlations)) if correlations else None,
    }


def _held(states: Sequence[Path], records: Sequence[ShadowRecord], horizon: int) -> dict[str, dict[str, _Held]]:
    """By action and user: later events, each counted for the user's newest request before it."""
    asked = _by_user(states, records)
    found: dict[str, dict[str, _Held]] = {action: {} for action in ACTIONS}
    for user, item, action, time in _events(states):
        requests = asked.get(user)
        place = 0 if requests is None else bisect_right(requests, time, key=lambda each: each.time)
        if requests is None or place == 0 or time - requests[place - 1].time > horizon:
            continue
        record = requests[place - 1].record
        before = found[action].get(user, _Held(0, 0, 0))
        found[action][user] = _Held(
            before.events + 1, before.live + (item in record.live.items), before.shadow + (item in record.shadow.items)
        )
    return found


def _by_user(states: Sequence[Path], records: Sequence[ShadowRecord]) -> dict[str, list[_Asked]]:
    """The requests of each user, oldest first; the exposures know whose they were."""
    by_request = {record.request_id: record for record in records}
    found: dict[str, list[_Asked]] = defaultdict(list)
    for folder in logs(states, "exposures"):
        for _, exposure in read_exposures(folder):
            record = by_request.get(exposure.request_id)
            if record is not None and exposure.user_id is not None:
                found[exposure.user_id].append(_Asked(record.time, record))
    for requests in found.values():
        requests.sort(key=lambda each: each.time)
    return found


def _events(states: Sequence[Path]) -> Iterator[tuple[str, str, str, int]]:
    """User, item, action and time of the events that count."""
    for folder in logs(states, "events"):
        for _, event in read_events(folder):
            if event["action"] in ACTIONS:
                yield event["user_id"], event["item_id"], event["action"], event["time"]
