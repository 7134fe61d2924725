"""What visitors do, as generators of requests that receive the answers; they know neither locust nor sockets.

A journey checks what it sees: lists are not empty, pages do not repeat items, and an item that was clicked is not
recommended again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np

_SIMILAR: Final = 10  # items asked for
_MISSING: Final = (404, 501)  # of similar: the item has left the catalogue, or the bundle has no index


@dataclass(frozen=True, slots=True)
class Step:
    """One request of a journey.

    Attributes:
        name: what it is counted as.
        path: of the API.
        body: JSON-ready.
        tolerated: statuses beside 200 after which the journey goes on without an answer.
    """

    name: str
    path: str
    body: dict[str, Any]
    tolerated: tuple[int, ...] = ()


class JourneyError(Exception):
    """An answer broke a promise of the API."""


Journey = Generator[Step, dict[str, Any] | None, None]


@dataclass
class Person:
    """Who goes on journeys.

    Attributes:
        generator: of choices.
        run: names this load test among all that ever ran against the server: event ids and new users are made of it.
        number: of the person, unique in the run.
        known: ids of users with a history.
        scenes: drawn evenly; empty: none is named.
        n: items per list.
        pages: that a heavy scroller looks at.
    """

    generator: np.random.Generator
    run: str
    number: int
    known: Callable[[], str]
    scenes: list[str] = field(default_factory=list)
    n: int = 20
    pages: int = 5
    _made: int = 0

    def unique(self, what: str) -> str:
        """An id that nobody had before."""
        self._made += 1
        return f"{what}-{self.run}-{self.number}-{self._made}"

    def lists(self, name: str, user: str | None, **more: Any) -> Step:
        """A recommend request."""
        body: dict[str, Any] = {"n": self.n, **more}
        if self.scenes:
            body["scene"] = self.scenes[int(self.generator.integers(len(self.scenes)))]
        if user is not None:
            body["user_id"] = user
        return Step(name, "/v1/recommend", body)

    def choose(self, items: list[str]) -> str:
        """One of a list, the first more often than the last."""
        return items[int(len(items) * self.generator.random() ** 2)]


def new_visitor(person: Person) -> Journey:
    """Somebody whom the server has never seen: browses without a name, then gets one."""
    shown = _items((yield person.lists("browse", None)))
    yield from _look_and_return(person, person.unique("visitor"), shown)


def returning_user(person: Person) -> Journey:
    """Somebody with a history."""
    user = person.known()
    shown = _items((yield person.lists("browse", user)))
    yield from _look_and_return(person, user, shown)


def heavy_scroller(person: Person) -> Journey:
    """Somebody with a history who looks at page after page before the first click."""
    user = person.known()
    shown = _items((yield person.lists("browse", user)))
    for _ in range(person.pages - 1):
        page = _items((yield person.lists("scroll", user, filters={"deny": shown})), may_be_empty=True)
        again = set(page) & set(shown)
        if again:
            raise JourneyError(f"scroll: denied items came again: {sorted(again)[:3]}")
        if not page:  # the end of the catalogue
            break
        shown = shown + page
    yield from _look_and_return(person, user, shown)


JOURNEYS: Final[dict[str, Callable[[Person], Journey]]] = {
    "new_visitor": new_visitor, "returning_user": returning_user, "heavy_scroller": heavy_scroller,
}  # fmt: skip


def _look_and_return(person: Person, user: str, browsed: list[str]) -> Journey:
    """Recommend, similar, events, recommend again."""
    answer = yield person.lists("recommend", user)
    shown = _items(answer) or browsed
    clicked = person.choose(shown)
    similar = yield Step("similar", "/v1/similar", {"item_id": clicked, "n": _SIMILAR}, _MISSING)
    if similar is not None and clicked in _items(similar, may_be_empty=True):
        raise JourneyError(f"similar: {clicked} is among the items like itself")
    request_id = str((answer or {}).get("request_id", ""))
    events = [_event(person, user, item, "impression", request_id, n) for n, item in enumerate(shown[: person.n])]
    events.append(_event(person, user, clicked, "click", request_id, shown.index(clicked)))
    taken = yield Step("events", "/v1/events", {"events": events})
    if taken is None or taken.get("accepted") != len(events):
        raise JourneyError(f"events: of {len(events)} new rows {(taken or {}).get('accepted')} were accepted")
    if clicked in _items((yield person.lists("recommend again", user))):
        raise JourneyError(f"recommend again: {clicked} was clicked and came again")


def _event(person: Person, user: str, item: str, action: str, request_id: str, position: int) -> dict[str, Any]:
    row = {"event_id": person.unique("event"), "user_id": user, "item_id": item, "action": action, "position": position}
    return {**row, "request_id": request_id} if request_id else row


def _items(answer: dict[str, Any] | None, *, may_be_empty: bool = False) -> list[str]:
    """Item ids of an answer.

    Raises:
        JourneyError: none where there must be some, or one twice.
    """
    items = [str(item["item_id"]) for item in (answer or {}).get("items", [])]
    if not items and not may_be_empty:
        raise JourneyError("a list is empty")
    if len(set(items)) != len(items):
        raise JourneyError("an item stands twice in one list")
    return items
