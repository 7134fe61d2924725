"""Which requests are sent: drawn with a seed from users, scenes and items, rendered to bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from uuid import uuid4

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field

from loadtest.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from loadtest.target import Request, Target

Kind = Literal["recommend", "similar", "events"]
_BLOCK: Final = 1024
_ZIPF_LEAST: Final = 0.0


def _only_recommend() -> dict[Kind, float]:
    return {"recommend": 1.0}


class Ids(BaseModel):
    """Ids of users or items: a file with one a line, or a pattern and how many.

    Attributes:
        file: wins over the pattern.
        pattern: with one replacement field for numbers from 0, as in `u{:07d}`.
        count: how many the pattern makes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: Path | None = None
    pattern: str = "u{:07d}"
    count: Annotated[int, Field(ge=1, le=100_000_000)] = 10_000

    def source(self) -> IdSource:
        """Ids by number.

        Raises:
            SettingsError: the file is absent or empty, or the pattern gives every number the same id.
        """
        if self.file is not None:
            return _from_file(self.file)
        try:
            distinct = self.pattern.format(0) != self.pattern.format(1)
        except (ValueError, IndexError, KeyError) as error:
            raise _bad_pattern(self.pattern) from error
        if not distinct:
            raise _bad_pattern(self.pattern)
        return IdSource(self.count, self.pattern.format)


@dataclass(frozen=True, slots=True)
class IdSource:
    """Ids by number.

    Attributes:
        count: how many there are.
        name: the id of a number below it.
    """

    count: int
    name: Callable[[int], str]


class Workload(BaseModel):
    """What is asked, and how often.

    Attributes:
        mix: kind of request to its weight.
        users: whose recommendations are asked for, and who sends events.
        items: of similar and events; not read where the mix has neither.
        skew: exponent of the popularity of users and items, by their number; 0: all alike.
        unknown_users: share of recommend requests without a user, as of a new visitor.
        n: items wanted.
        scenes: drawn evenly; empty: none is named.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mix: dict[Kind, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=_only_recommend)
    users: Ids = Field(default_factory=Ids)
    items: Ids = Field(default_factory=lambda: Ids(pattern="i{:07d}"))
    skew: Annotated[float, Field(ge=0, le=10)] = _ZIPF_LEAST
    unknown_users: Annotated[float, Field(ge=0, le=1)] = 0.0
    n: Annotated[int, Field(ge=1, le=500)] = 20
    scenes: list[str] = Field(default_factory=list)

    def requests(self, target: Target, seed: int) -> Iterator[Request]:
        """Requests without end; the same seed gives the same ones, but for the ids of events, which are always new.

        Raises:
            SettingsError: no kind has a weight, or ids cannot be read.
        """
        weights = np.array(list(self.mix.values()), float)
        if not weights.sum():
            raise SettingsError("no kind has a weight", field="mix", value=self.mix, remedy="give recommend: 1")
        drawer = _Drawer(self, target, seed)
        return drawer.requests(list(self.mix), weights / weights.sum())


@dataclass
class _Drawer:
    """Draws numbers in blocks, which costs the client a fraction of drawing one by one."""

    workload: Workload
    target: Target
    seed: int
    sent_events: int = 0
    stream: str = field(default_factory=lambda: uuid4().hex)  # in ids of events: a service takes each of them once
    users: IdSource = field(init=False)
    items: IdSource | None = field(init=False)

    def __post_init__(self) -> None:
        self.users = self.workload.users.source()
        wants_items = any(self.workload.mix.get(kind) for kind in ("similar", "events"))
        self.items = self.workload.items.source() if wants_items else None

    def requests(self, kinds: Sequence[Kind], weights: np.ndarray[Any, np.dtype[np.float64]]) -> Iterator[Request]:
        generator = np.random.default_rng(self.seed)
        scenes = self.workload.scenes or [""]
        while True:
            chosen = generator.choice(len(kinds), _BLOCK, p=weights).tolist()
            users = self._numbers(generator, self.users)
            items = self._numbers(generator, self.items) if self.items is not None else [0] * _BLOCK
            unknown = (generator.random(_BLOCK) < self.workload.unknown_users).tolist()
            scene = generator.integers(len(scenes), size=_BLOCK).tolist()
            for row in range(_BLOCK):
                user = self.users.name(users[row])
                item = self.items.name(items[row]) if self.items is not None else ""
                kind = kinds[chosen[row]]
                body = self._body(kind, "" if unknown[row] else user, user, item, scenes[scene[row]])
                yield self.target.request(kind, f"/v1/{kind}", orjson.dumps(body))

    def _body(self, kind: Kind, known: str, user: str, item: str, scene: str) -> dict[str, Any]:
        if kind == "similar":
            return {"item_id": item, "n": self.workload.n}
        if kind == "events":
            self.sent_events += 1
            event_id = f"loadtest-{self.stream}-{self.sent_events}"
            return {"events": [{"event_id": event_id, "user_id": user, "item_id": item, "action": "click"}]}
        body: dict[str, Any] = {"n": self.workload.n}
        if known:
            body["user_id"] = known
        if scene:
            body["scene"] = scene
        return body

    def _numbers(self, generator: np.random.Generator, ids: IdSource) -> list[int]:
        """Numbers of a block, bounded Zipf by the inverse of its continuous form."""
        uniform, skew, count = generator.random(_BLOCK), self.workload.skew, ids.count
        if skew == 0:
            drawn = uniform * count
        elif skew == 1:
            drawn = np.expm1(uniform * np.log1p(count))
        else:
            drawn = (1 + uniform * ((count + 1.0) ** (1 - skew) - 1)) ** (1 / (1 - skew)) - 1
        numbers: list[int] = np.minimum(drawn.astype(np.int64), count - 1).tolist()
        return numbers


def _from_file(path: Path) -> IdSource:
    try:
        names = [line for line in path.read_text().splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"ids cannot be read: {error}", field="file", value=str(path), remedy="a text file with one id a line"
        ) from error
    if not names:
        raise SettingsError("holds no ids", field="file", value=str(path), remedy="a text file with one id a line")
    return IdSource(len(names), names.__getitem__)


def _bad_pattern(pattern: str) -> SettingsError:
    return SettingsError("makes no ids of numbers", field="pattern", value=pattern, remedy="write it as u{:07d}")
