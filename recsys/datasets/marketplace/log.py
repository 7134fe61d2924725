"""The event log of a block of users: what was shown to them, and what they did."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.datasets.marketplace import behaviour
from recsys.datasets.marketplace.settings import (
    DAY,
    SECOND,
    START,
    Bools,
    Doubles,
    Indices,
    Ints,
    Scene,
    Stream,
    stream,
)
from recsys.records import EVENTS, Action

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recsys.datasets.marketplace.people import Moments
    from recsys.datasets.marketplace.world import Marketplace

_ACTIONS: Final = (Action.IMPRESSION, Action.CLICK, Action.CART, Action.PURCHASE)
_NOTED: Final = ("impressions", "clicks", "carts", "purchases")
_SEQ_PER_DAY: Final = 100_000  # more than the events of any user on any day
_LISTING = 24  # items that a browsing user compares
_BROWSE_TAKES = 0.9  # chance that browsing ends at an item's page
_LATE = 0.005  # share of events that arrive late


@dataclass(frozen=True, slots=True)
class _Rows:
    """Events as columns of numbers, (n,) each.

    Attributes:
        user, item, time, scene: as in the tables.
        arrival: when the event reached the log.
        action: index into `_ACTIONS`.
        value: price of a purchase, else -1.
        request: number of the request, counted per user over all days; -1 while browsing.
        position: place in the slate from 0; -1 while browsing.
        propensity: of an item that was shown, nan while browsing.
        explored: the item stands there by exploration.
    """

    user: Ints
    item: Indices
    time: Ints
    arrival: Ints
    scene: Ints
    action: Ints
    value: Ints
    request: Ints
    position: Ints
    propensity: Doubles
    explored: Bools

    @staticmethod
    def concatenate(parts: Sequence[_Rows]) -> _Rows:
        return _Rows(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(_Rows)))

    def take(self, rows: Ints) -> _Rows:
        return _Rows(*(getattr(self, f.name)[rows] for f in fields(_Rows)))


def block_events(market: Marketplace, block: int, from_day: int, days: int) -> tuple[pa.Table, dict[str, int]]:
    """Simulate the events of a block of users on some days.

    The rows of a day depend on nothing but (size, seed, block, day).

    Returns:
        the events in canonical order, and counts: a number per action, and `explored_slots`.
    """
    parts = [_day_rows(market, block, day) for day in range(from_day, from_day + days)]
    rows = _Rows.concatenate(parts)
    rows = rows.take(np.lexsort((rows.position, rows.action, rows.time, rows.user)))
    counts = {name: int((rows.action == index).sum()) for index, name in enumerate(_NOTED)}
    counts["explored_slots"] = int(((rows.action == 0) & rows.explored).sum())
    return _table(rows), counts


def _day_rows(market: Marketplace, block: int, day: int) -> _Rows:
    moments = market.moments(block, day, 1)
    rng = stream(market.seed, Stream.LOG, block, day)
    asking = moments.take(np.flatnonzero(moments.scene != Scene.BROWSE))
    browsing = moments.take(np.flatnonzero(moments.scene == Scene.BROWSE))
    return _Rows.concatenate([_shown(market, day, asking, rng), _browsed(market, day, browsing, rng)])


def _shown(market: Marketplace, day: int, moments: Moments, rng: np.random.Generator) -> _Rows:
    """Slates of the logged recommender and the responses to them."""
    slates = market.logged_slates(day, moments, rng)
    response = behaviour.respond(market.catalog, moments, slates.items, moments.scene, rng)
    chosen = (slates.items >= 0, response.clicks, response.carts, response.purchases)
    moment, position, action = _cells(chosen)
    items = slates.items[moment, position]
    time = _times(moments.time[moment], action, position, rng)
    return _Rows(
        user=moments.user[moment],
        item=items,
        time=time,
        arrival=_arrivals(time, rng),
        scene=moments.scene[moment],
        action=action,
        value=_values(market, items, action),
        request=day * 1_000 + moments.step[moment],
        position=position,
        propensity=slates.propensities[moment, position],
        explored=slates.explored[moment, position],
    )


def _browsed(market: Marketplace, day: int, moments: Moments, rng: np.random.Generator) -> _Rows:
    """What users find on their own: of some items of the wanted leaf, met by appeal, the one they like best."""
    catalog = market.catalog
    low = catalog.attention[catalog.leaf_first[moments.intent]][:, None]
    high = catalog.attention[catalog.leaf_first[moments.intent + 1]][:, None]
    places = np.searchsorted(catalog.attention, low + (high - low) * rng.random((len(moments), _LISTING)), "right") - 1
    items = catalog.by_leaf[np.minimum(places, len(catalog) - 1)]
    fits = catalog.available(items, day) & (catalog.leaf[items] == moments.intent[:, None])
    utilities = behaviour.utility(catalog, moments, items, moments.scene)
    noisy = np.where(fits, utilities + rng.gumbel(size=items.shape), -np.inf)
    best = noisy.argmax(axis=1)[:, None]
    found = fits.any(axis=1) & (rng.random(len(moments)) < _BROWSE_TAKES)
    clicks = found[:, None]
    carts, purchases = behaviour.after_click(np.take_along_axis(utilities, best, axis=1), moments.scene, clicks, rng)
    moment, position, action = _cells((np.zeros_like(clicks), clicks, carts, purchases))
    chosen = items[moment, best[moment, 0]]
    time = _times(moments.time[moment], action, position, rng)
    nothing = np.full(len(moment), -1, dtype=np.int64)
    return _Rows(
        user=moments.user[moment],
        item=chosen,
        time=time,
        arrival=_arrivals(time, rng),
        scene=moments.scene[moment],
        action=action,
        value=_values(market, chosen, action),
        request=nothing,
        position=nothing,
        propensity=np.full(len(moment), np.nan),
        explored=np.zeros(len(moment), dtype=np.bool_),
    )


def _cells(chosen: tuple[Bools, ...]) -> tuple[Ints, Ints, Ints]:
    """Row, column and action of every true cell of one (n, k) array per action."""
    found = [np.nonzero(cells) for cells in chosen]
    action = np.repeat(np.arange(len(chosen)), [len(rows) for rows, _ in found])
    return np.concatenate([rows for rows, _ in found]), np.concatenate([columns for _, columns in found]), action


def _times(time: Ints, action: Ints, position: Ints, rng: np.random.Generator) -> Ints:
    """When the action happens: shown at once, then seconds later from the top, all before the user's next step."""
    click = (2 + 3 * np.minimum(position, 9)) * SECOND + rng.integers(1, 3 * SECOND, size=len(time))
    delay = np.where(action == 0, 0, click + (action - 1) * 30 * SECOND)
    later: Ints = time + delay
    return later


def _arrivals(time: Ints, rng: np.random.Generator) -> Ints:
    """When the events reach the log: seconds later, a few of them an hour."""
    mean = np.where(rng.random(len(time)) < _LATE, 3600.0, 1.5) * SECOND
    arrival: Ints = time + (rng.exponential(size=len(time)) * mean).astype(np.int64)
    return arrival


def _values(market: Marketplace, items: Indices, action: Ints) -> Ints:
    bought = action == _ACTIONS.index(Action.PURCHASE)
    return np.where(bought, market.catalog.price_micros[items], -1)


def _table(rows: _Rows) -> pa.Table:
    """The rows, sorted by (user, time), as events of the table contract."""
    count = len(rows.user)
    day = (rows.time - START) // DAY
    new = np.ones(count, dtype=np.bool_)
    new[1:] = (rows.user[1:] != rows.user[:-1]) | (day[1:] != day[:-1])
    first = np.maximum.accumulate(np.where(new, np.arange(count), 0))
    seq = day * _SEQ_PER_DAY + np.arange(count) - first
    user_id = _names("u", rows.user)
    number = pa.array(seq).cast(pa.string())
    request = pa.array(rows.request, mask=rows.request < 0).cast(pa.string())
    columns = {
        "event_id": pc.binary_join_element_wise(user_id, number, "-"),
        "user_id": user_id,
        "item_id": _names("i", rows.item.astype(np.int64)),
        "time": pa.array(rows.time),
        "created_at": pa.array(rows.arrival),
        "seq": pa.array(seq),
        "scene": pa.array([scene.label for scene in Scene]).take(pa.array(rows.scene)),
        "action": pa.array([str(action) for action in _ACTIONS]).take(pa.array(rows.action)),
        "value_micros": pa.array(rows.value, mask=rows.value < 0),
        "request_id": pc.binary_join_element_wise(user_id, request, "-r"),
        "position": pa.array(rows.position.astype(np.int32), mask=rows.position < 0),
        "attributes": _attributes(rows),
    }
    return pa.table([columns[name] for name in EVENTS.names], schema=EVENTS)


def _names(letter: str, numbers: Ints) -> pa.Array:
    """`letter` and seven digits, as `Marketplace.user_ids` writes them."""
    different, place = np.unique(numbers, return_inverse=True)
    return pa.array([f"{letter}{number:07d}" for number in different.tolist()], pa.string()).take(pa.array(place))


def _attributes(rows: _Rows) -> pa.Array:
    """Impressions and clicks on slates carry their propensity, and `source` where they stand by exploration."""
    shown = (rows.position >= 0) & (rows.action <= _ACTIONS.index(Action.CLICK))
    pairs = np.where(shown, 1 + rows.explored, 0)
    offsets = np.concatenate([[0], np.cumsum(pairs)]).astype(np.int32)
    # Seven digits are enough, and the shortest text of a 32-bit number is what is written.
    propensity = pa.array(np.repeat(rows.propensity, pairs).astype(np.float32)).cast(pa.string())
    second = np.ones(int(offsets[-1]), dtype=np.bool_)
    second[offsets[:-1][shown]] = False
    keys = pa.array(["propensity", "source"]).take(pa.array(second.astype(np.int8)))
    values = pc.if_else(pa.array(second), "explore", propensity)
    starts = pa.array(offsets, mask=np.concatenate([pairs == 0, [False]]))
    return pa.MapArray.from_arrays(starts, keys, values)
