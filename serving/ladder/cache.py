"""The last good answer of each user and scene: what is shown again when no better one can be made."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from dataclasses import fields
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from serving.engine import EngineAnswer, EngineRequest, SlateItem

if TYPE_CHECKING:
    from collections.abc import Callable

    from recsys.bundle.pointers import Share
    from serving.engine import EngineVersions

LARGEST: Final = 16 << 10  # bytes of an answer; 20 items with titles have about 2,000
_FORGOTTEN: Final = 60.0  # seconds for which answers that are still on their way to a forgotten user are not kept
# Of a request all but what differs where the same is asked again.
_PASSING: Final = frozenset({"time", "deadline", "small", "request_id", "unit"})
_ASKED: Final = tuple(field.name for field in fields(EngineRequest) if field.name not in _PASSING)
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(EngineAnswer)


class Fingerprint(NamedTuple):
    """What an answer was asked for: equal fingerprints, equal questions to equal bundles and catalogues.

    Attributes:
        digest: of the request's content; the history's ids are its version.
        bundle: that was to answer.
        catalog: its catalogue.
        canary: who is answered by another bundle.
    """

    digest: bytes
    bundle: str
    catalog: str
    canary: Share | None


class _Kept(NamedTuple):
    at: float
    answer: bytes
    fingerprint: Fingerprint | None


class AnswerCache:
    """Answers by user and scene, as bytes, so that they cost the collector of garbage nothing. Single-threaded.

    Args:
        most: answers that are kept; the one unused for longest goes first. 0 = none.
        age: seconds for which the last answer of a user may be shown again.
        fresh: seconds for which it is the answer to the same question; 0 = never.
        clock: monotonic seconds.
    """

    def __init__(
        self, *, most: int, age: float, fresh: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._age, self._fresh, self._clock = most, age, fresh, clock
        self._kept: OrderedDict[tuple[str, str | None], _Kept] = OrderedDict()
        self._scenes: dict[str, set[str | None]] = {}  # of each user with an answer
        self._forgotten: OrderedDict[str, float] = OrderedDict()  # user to when

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def answers_again(self) -> bool:
        """Whether an answer may be that of the same question asked again."""
        return bool(self._fresh and self._most)

    def fingerprint(self, request: EngineRequest, versions: EngineVersions) -> Fingerprint:
        """What `again` compares."""
        return Fingerprint(_digest(request), versions.bundle, versions.catalog, versions.canary_share)

    def put(
        self, user_id: str, scene: str | None, answer: EngineAnswer, fingerprint: Fingerprint | None, asked: float
    ) -> None:
        """Keep an answer in the place of the one before.

        Args:
            user_id: whose.
            scene: for which surface.
            answer: good enough to be shown again.
            fingerprint: of its question.
            asked: when the question came, on the clock, before anything of the user was read; it is not kept where the
                user was forgotten since.
        """
        if not self._most or (self._forgotten and self._was_forgotten(user_id, asked)):
            return
        data = _encoder.encode(answer)
        if len(data) > LARGEST:
            return
        key = user_id, scene
        self._kept[key] = _Kept(self._clock(), data, fingerprint)
        self._kept.move_to_end(key)
        self._scenes.setdefault(user_id, set()).add(scene)
        if len(self._kept) > self._most:
            self._drop(next(iter(self._kept)))

    def again(self, user_id: str, scene: str | None, fingerprint: Fingerprint) -> list[SlateItem] | None:
        """The items that answered the same question a moment ago."""
        kept = self._kept.get((user_id, scene))
        if kept is None or kept.fingerprint != fingerprint or self._clock() - kept.at > self._fresh:
            return None
        return self._used((user_id, scene), kept)

    def last(self, user_id: str, scene: str | None) -> list[SlateItem] | None:
        """The items of the user's last answer in the scene, whatever was asked, unless it is too old."""
        kept = self._kept.get((user_id, scene))
        if kept is None:
            return None
        if self._clock() - kept.at > self._age:
            self._drop((user_id, scene))
            return None
        return self._used((user_id, scene), kept)

    def forget(self, user_id: str) -> int:
        """Drop all answers of a user, those included that are being made.

        Returns:
            How many there were.
        """
        now = self._clock()
        while self._forgotten and now - next(iter(self._forgotten.values())) > _FORGOTTEN:
            self._forgotten.popitem(last=False)
        self._forgotten[user_id] = now
        self._forgotten.move_to_end(user_id)
        scenes = self._scenes.pop(user_id, set())
        for scene in scenes:
            del self._kept[user_id, scene]
        return len(scenes)

    def _used(self, key: tuple[str, str | None], kept: _Kept) -> list[SlateItem]:
        self._kept.move_to_end(key)
        return _decoder.decode(kept.answer).items

    def _drop(self, key: tuple[str, str | None]) -> None:
        user_id, scene = key
        del self._kept[key]
        scenes = self._scenes[user_id]
        scenes.discard(scene)
        if not scenes:
            del self._scenes[user_id]

    def _was_forgotten(self, user_id: str, asked: float) -> bool:
        at = self._forgotten.get(user_id)
        return at is not None and asked <= at


def _digest(request: EngineRequest) -> bytes:
    """Of all that an answer depends on but bundle, catalogue and time."""
    content = [getattr(request, name) for name in _ASKED]
    return hashlib.blake2b(_encoder.encode(content), digest_size=16).digest()
