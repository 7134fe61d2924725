"""What is said to Redis, and what its answers mean; no connection here, so that coroutines and threads share it."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from redis.exceptions import (
    ClusterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from feature_store.entries import same_generation
from feature_store.reading import TAIL, Reason
from recsys.errors import DataError, UnavailableError, WindfireError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feature_store.store import Prepared

FAILURES: Final = (RedisError, RedisClusterException, OSError)
"""What redis-py raises of an outage or an error answer; a deadline's TimeoutError is an OSError too."""
_OUTAGES: Final = (
    RedisConnectionError, RedisTimeoutError, ReadOnlyError, ClusterDownError, TryAgainError,
    RedisClusterException, OSError,
)  # fmt: skip
_FOLD_BYTES: Final = 4096
_FULL_BYTES: Final = 65_536
_FULL: Final = -1
_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, known to Redis by its SHA-1."""

    text: str
    sha: str

    @classmethod
    def load(cls, name: str) -> Script:
        """Read one of this package's scripts."""
        text = files("feature_store").joinpath(name).read_text()
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


PUT: Final = Script.load("redis_put.lua")
MERGE: Final = Script.load("redis_merge.lua")
FOLD: Final = Script.load("redis_fold.lua")


class Call(NamedTuple):
    """One script with its keys, all of one entity, and its arguments."""

    script: Script
    keys: tuple[bytes, ...]
    arguments: tuple[bytes | str | int, ...]

    def by_sha(self) -> tuple[Any, ...]:
        """The command for a server that knows the script."""
        return ("EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.arguments)

    def by_text(self) -> tuple[Any, ...]:
        """The command that also teaches it."""
        return ("EVAL", self.script.text, len(self.keys), *self.keys, *self.arguments)


Step = list[Call] | list[bytes]
"""One round trip: scripts to run, or keys to fetch."""
Flow = Generator[Step, list[Any], list[bool]]
Command = tuple[Any, ...]
Trip = list[Command] | list[bytes]
"""One round trip as it is sent: commands of one pipeline, or keys to fetch."""
Trips = Generator[Trip, list[Any], list[bool]]


def write_flow(prepared: Sequence[Prepared | None]) -> Flow:
    """Round trips of a put or a merge: one, and two more where a tail has grown long enough to be folded.

    Raises:
        UnavailableError: a tail is full and could not be folded; the other writes were made.
        DataError: a key holds something of another type; the other writes were made.
    """
    calls = {number: _call(one) for number, one in enumerate(prepared) if one is not None}
    done = [False] * len(prepared)
    waiting = list(calls)
    refused: list[DataError] = []
    for _ in range(_TRIES):
        if not waiting:
            break
        replies: list[Any] = yield [calls[number] for number in waiting]
        full, long = [], []
        for number, reply in zip(waiting, replies, strict=True):
            one = _of(prepared, number)
            if isinstance(reply, DataError):
                refused.append(reply)
                continue
            done[number] = reply != _FULL and (reply > 0 or one.view.history is not None)
            if one.view.history is not None and (reply == _FULL or reply > _FOLD_BYTES or one.erases):
                long.append(one)
            if reply == _FULL:
                full.append(number)
        needed = bool(full) or any(one.erases for one in long)
        not_folded = (yield from _fold(long, needed=needed)) if long else {}
        refused += [not_folded[key] for number in full if (key := _of(prepared, number).key) in not_folded]
        waiting = [number for number in full if _of(prepared, number).key not in not_folded]
    if waiting:
        label = _of(prepared, waiting[0]).view.label
        raise UnavailableError("a history's tail is full and others were faster in folding it",
                               field="view", value=label, remedy="merge again")  # fmt: skip
    if refused:
        raise refused[0]
    return done


def _fold(long: Sequence[Prepared], *, needed: bool) -> Generator[Step, list[Any], dict[bytes, DataError]]:
    """Fold tails; which of their bases are of another type, by key."""
    replies: list[Any] = []
    folds: list[Call] = []
    unique = list({one.key: one for one in long}.values())
    try:
        raws: list[bytes | None] = yield [key for one in unique for key in (one.key + TAIL, one.key)]
        pairs = zip(unique, raws[::2], raws[1::2], strict=True)
        folds = [_fold_call(one, tail, base) for one, tail, base in pairs if tail is not None]
        if folds:
            replies = yield folds
            erasing = {one.key for one in long if one.erases}
            if any(reply == 0 and call.keys[-1] in erasing for call, reply in zip(folds, replies, strict=True)):
                raise UnavailableError("a history changed while its deletion was folded in",
                                       field="view", value=long[0].view.label, remedy="delete again")  # fmt: skip
    except WindfireError:  # the merge itself was acknowledged, and the next one folds
        if needed:
            raise
    return {call.keys[-1]: reply for call, reply in zip(folds, replies, strict=False) if isinstance(reply, DataError)}


def _fold_call(one: Prepared, tail: bytes, base: bytes | None) -> Call:
    sha = hashlib.sha1(tail, usedforsecurity=False).hexdigest()
    arguments = (same_generation(base), sha, len(tail), one.view.entries.fold(base, tail))
    return Call(FOLD, (one.key + TAIL, one.key), arguments)


def _call(one: Prepared) -> Call:
    if one.view.history is None:
        return Call(PUT, (one.key,), (one.raw, one.keep_ms))
    return Call(MERGE, (one.key + TAIL, one.key), (one.raw, one.keep_ms, _FULL_BYTES))


def _of(prepared: Sequence[Prepared | None], number: int) -> Prepared:
    one = prepared[number]
    if one is None:
        raise ValueError("a write that was not sent has an answer")
    return one


def write_trips(prepared: Sequence[Prepared | None], *, cluster: bool) -> Trips:
    """What is sent for a put or a merge, round trip by round trip; whoever drives it sends and hands back replies.

    An error of redis-py (`FAILURES`) that ended a round trip is thrown in; error answers among the replies are replies.

    Args:
        prepared: the writes.
        cluster: whose pipelines take no EVALSHA; else a server that does not know a script is taught it by one more
            round trip.

    Raises:
        UnavailableError: not acknowledged.
        DataError: a key holds something of another type.
    """
    flow = write_flow(prepared)
    try:
        step = next(flow)
        while True:
            try:
                replies = yield from _step_trips(step, cluster=cluster)
            except WindfireError as error:
                step = flow.throw(error)
            else:
                step = flow.send(replies)
    except StopIteration as stop:
        return list(stop.value)


def _step_trips(step: Step, *, cluster: bool) -> Generator[Trip, list[Any], list[Any]]:
    """One step's replies, with a `DataError` in the place of one whose key is of another type."""
    calls = [one for one in step if isinstance(one, Call)]
    try:
        if not calls:
            return (yield [one for one in step if isinstance(one, bytes)])
        replies: list[Any] = yield [call.by_text() if cluster else call.by_sha() for call in calls]
        if unknown := [place for place, reply in enumerate(replies) if isinstance(reply, NoScriptError)]:
            taught: list[Any] = yield [calls[place].by_text() for place in unknown]
            for place, reply in zip(unknown, taught, strict=True):
                replies[place] = reply
    except FAILURES as error:
        raise failure(error, calls[0].keys[-1] if calls else None) from error
    for place, (call, reply) in enumerate(zip(calls, replies, strict=True)):
        if isinstance(reply, Exception):
            answer = failure(reply, call.keys[-1])
            if not isinstance(answer, DataError):  # an outage: it is worse, and whoever waits for its end repeats all
                raise answer from reply
            replies[place] = answer
    return replies


def failure(error: BaseException, key: bytes | None = None) -> WindfireError:
    """What a writer is told of an error of redis-py."""
    # Redis 6 wraps what a script met into an error of its own.
    if not isinstance(error, _OUTAGES) and "WRONGTYPE" in str(error):
        return DataError(f"Redis refused a write: {error}", field="key", value=key,
                         remedy="see what else uses this key")  # fmt: skip
    full = isinstance(error, OutOfMemoryError) or "OOM command" in str(error)
    remedy = "give Redis memory" if full else "check that Redis runs and takes writes, then repeat"
    # Without the key: it names a user, an outage is nobody's in particular, and its line goes to the log.
    return UnavailableError(f"Redis did not acknowledge: {error}", remedy=remedy)


def reason_of(error: BaseException) -> Reason:
    """Why a read came back without values."""
    return Reason.DEADLINE if isinstance(error, RedisTimeoutError | TimeoutError) else Reason.UNAVAILABLE


def fetched(replies: list[Any]) -> list[Any]:
    """Replies to GETs as MGET gives them: a key of another type counts as absent.

    Raises:
        redis.RedisError: any other error among the replies.
    """
    values = [None if _is_wrong_type(reply) else reply for reply in replies]
    for value in values:
        if isinstance(value, Exception):
            raise value
    return values


def _is_wrong_type(reply: Any) -> bool:
    return isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE")
