"""The engine: what answers a recommendation behind one protocol, whichever process it runs in."""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal, Protocol

import msgspec

from recsys.bundle.pointers import Share  # msgspec reads the annotations
from recsys.catalog import CatalogFilter
from recsys.errors import OverloadedError, UnavailableError
from recsys.retrieval.settings import VectorsName  # msgspec reads the annotations
from serving.ladder.pace import Pace
from serving.layout import Layout
from serving.schemas import ServedBy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from serving.item_changes import ItemChange, ItemChanged
    from serving.metrics import EngineMetrics


_SHORT: Final = 0.001  # seconds of waiting that are not counted
Refusal = Literal["unknown_item", "no_index", "no_encoder"]


class Seek(msgspec.Struct, frozen=True, array_like=True):
    """What to look for in the bundle's indexes: items like an item, or items for a text.

    Attributes:
        item_id: whose neighbours are wanted; it is none of them itself.
        text: where there is no item.
        vectors: that are compared; None = the best that the item has.
    """

    item_id: str | None = None
    text: str | None = None
    vectors: VectorsName | None = None


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A recommendation asked of the engine; items by id, because ids outlive bundles.

    Attributes:
        history: item ids, oldest first; ids that the catalog does not have are ignored.
        n: items wanted, at least 1.
        time: UTC microseconds by which availability is judged.
        scene: surface of the app.
        conditions: on the items' attributes.
        allow: only these items may be shown; None = all.
        deny: none of these may be shown.
        exclude_seen: whether no item of the history may be shown.
        deadline: monotonic seconds by which the answer must be there to be of use; None = whenever.
        seek: ask the indexes instead; history and scene are not looked at then.
        small: decode with the smaller beam; the engine decides that, see `InProcessEngine`.
        layout: what the slate may look like.
        shown: item ids of the pages before; none of these is shown again.
        request_id: joins what is written down about the answer; None = nothing is.
        unit: who is drawn into arms: the user, else the request; None = nobody.
    """

    history: Sequence[str]
    n: int
    time: int
    scene: str | None = None
    conditions: CatalogFilter = field(default_factory=CatalogFilter)
    allow: Sequence[str] | None = None
    deny: Sequence[str] = ()
    exclude_seen: bool = True
    deadline: float | None = None
    seek: Seek | None = None
    small: bool = False
    layout: Layout = field(default_factory=Layout)
    shown: Sequence[str] = ()
    request_id: str | None = None
    unit: str | None = None


class SlateItem(msgspec.Struct, frozen=True, array_like=True):
    """One item of an answer; scores do not rise within one source unless the request wants diversity."""

    item_id: str
    score: float
    source: str
    title: str | None


class EngineCounts(msgspec.Struct, frozen=True, array_like=True):
    """See `serving.schemas.Counts`."""

    history: int
    history_unknown: int
    history_cut: int
    filter_unknown: int


class EngineAnswer(msgspec.Struct, frozen=True, array_like=True):
    """A slate made from one bundle.

    Attributes:
        items: at most n, best first.
        served_by: the tier that began the answer.
        decoder: the decoder that ran, None where none was needed.
        bundle_version: the bundle that everything in the answer comes from.
        catalog_version: its catalog.
        truncated: fewer than n items are eligible, or the caps let no more in.
        counts: what was done with the request's ids.
        ineligible: items that the last look at the slate took out; a fault if it is not 0.
        refusal: why the indexes could not be asked; there are no items then.
        more: whether a next page would have an item.
        arms: experiment to assigned arm.
        times: seconds that filter, decode and slate took of the batch that it was part of; None = not known.
    """

    items: list[SlateItem]
    served_by: ServedBy
    decoder: str | None
    bundle_version: str
    catalog_version: str
    truncated: bool
    counts: EngineCounts
    ineligible: int = 0
    refusal: Refusal | None = None
    more: bool = False
    arms: dict[str, str] = msgspec.field(default_factory=dict)
    times: tuple[float, float, float] | None = None


class EngineVersions(msgspec.Struct, frozen=True, array_like=True):
    """What an engine runs.

    Attributes:
        bundle: the version that answers.
        catalog: its catalogue as it is now.
        decoder: its name.
        canary: the version that answers a share of the users; None = there is none.
        shadow: the version that answers behind the scenes; None = there is none.
        canary_share: who belongs to the canary; None = there is none.
    """

    bundle: str
    catalog: str
    decoder: str
    canary: str | None = None
    shadow: str | None = None
    canary_share: Share | None = None


class Engine(Protocol):
    """Answers recommendations."""

    @property
    def versions(self) -> EngineVersions | None:
        """What runs; None before the first bundle."""

    async def recommend(self, request: EngineRequest) -> EngineAnswer:
        """Answer one request.

        Raises:
            OverloadedError: the queue is full, or the deadline cannot be kept.
            UnavailableError: no bundle yet, or the engine is stopping.
        """


class EngineKeeper(Protocol):
    """What a front-end knows of its engine besides the answers."""

    @property
    def trouble(self) -> str | None:
        """Why requests should go elsewhere, in the words of `/readyz`; None = no reason but perhaps a bundle."""

    @property
    def refused(self) -> str | None:
        """Why the newest bundle could not be loaded; None = it was, or there is none."""

    async def figures(self) -> bytes:
        """The engine's counters in the Prometheus text format; empty where it cannot be asked."""

    async def change(self, change: ItemChange) -> ItemChanged:
        """See `serving.item_changes.Changes`."""


class Recommender(Protocol):
    """A loaded bundle: the part of an engine that a reload exchanges."""

    @property
    def versions(self) -> EngineVersions:
        """What it is."""

    def recommend(self, requests: Sequence[EngineRequest]) -> list[EngineAnswer]:
        """Answer a batch, in order."""


def after_waiting(request: EngineRequest, seconds: float) -> EngineRequest:
    """A request that has waited so long: an item may have ended meanwhile."""
    return request if seconds < _SHORT else replace(request, time=request.time + round(seconds * 1e6))


@dataclass(frozen=True, slots=True)
class _Waiting:
    request: EngineRequest
    answer: asyncio.Future[EngineAnswer]
    loop: asyncio.AbstractEventLoop
    since: float

    def at(self, now: float) -> _Waiting:
        """The same, to be judged as of now."""
        request = after_waiting(self.request, now - self.since)
        return self if request is self.request else replace(self, request=request)


class InProcessEngine:
    """Decodes in one thread of this process, away from the event loop.

    Requests that wait while a batch is decoded form the next batch; nobody waits for a batch to fill. A batch is
    answered by one recommender, so that an answer never mixes two bundles.

    A request is refused at once where it would, at the pace of the last batches, not be answered by its deadline; one
    whose deadline has passed when its turn comes is refused then. A batch is decoded with the smaller beam where
    the full one would make it, or those that wait behind it, late.

    Args:
        metrics: counts batches and the queue.
        queue_limit: requests that may wait.
        batch_limit: requests that are decoded together.
        torch_threads: threads of one tensor operation.
        small: whether the recommenders have a smaller beam.
        clock: monotonic seconds, those of the deadlines.
    """

    def __init__(
        self,
        metrics: EngineMetrics,
        *,
        queue_limit: int,
        batch_limit: int,
        torch_threads: int,
        small: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._batch_limit = batch_limit
        self._torch_threads = torch_threads
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(queue_limit)
        metrics.queue.set_function(self._queue.qsize)
        self._recommender: Recommender | None = None
        self._stopping = False
        self._admission = threading.Lock()  # nobody queues behind the end
        self._clock = clock
        self._pace = Pace(small=small)
        self._busy_until: float | None = None  # when the batch in work should be done; None = there is none
        self._thread = threading.Thread(target=self._run, name="windfire-engine", daemon=True)
        self._thread.start()

    @property
    def versions(self) -> EngineVersions | None:
        """See `Engine.versions`."""
        recommender = self._recommender
        return None if recommender is None else recommender.versions

    @property
    def waiting(self) -> int:
        """Requests that wait for the model."""
        return self._queue.qsize()

    @property
    def recommender(self) -> Recommender | None:
        """What the next batch is answered by."""
        return self._recommender

    def swap(self, recommender: Recommender) -> None:
        """Answer from this recommender, beginning with the next batch."""
        self._recommender = recommender

    async def recommend(self, request: EngineRequest) -> EngineAnswer:
        """See `Engine.recommend`."""
        return await self.submit(request)

    def submit(self, request: EngineRequest) -> asyncio.Future[EngineAnswer]:
        """Queue a request; the future belongs to the running event loop, and cancelling it spares the decoding.

        Raises:
            UnavailableError: see `Engine.recommend`.
        """
        if self._recommender is None:
            raise UnavailableError("no bundle is loaded")
        if self._late(request):
            self._forget_cancelled()
        if self._late(request):
            self._metrics.late.labels("refused").inc()
            raise OverloadedError("the model cannot answer before the request's deadline")
        loop = asyncio.get_running_loop()
        waiting = _Waiting(request, loop.create_future(), loop, self._clock())
        with self._admission:
            if self._stopping:
                raise UnavailableError("the server is stopping")
            if self._queue.full():
                self._forget_cancelled()
            try:
                self._queue.put_nowait(waiting)
            except queue.Full:
                raise OverloadedError("too many requests wait for the model") from None
        return waiting.answer

    def _late(self, request: EngineRequest) -> bool:
        """Whether a request that is queued now would be answered too late; of an idle engine nothing is known."""
        waiting, busy_until, now = self._queue.qsize(), self._busy_until, self._clock()
        if request.deadline is None:
            return False
        if not waiting and busy_until is None:
            return now > request.deadline
        return max(now, busy_until or 0.0) + self._pace.least * (waiting + 1) > request.deadline

    def _forget_cancelled(self) -> None:
        """Free the places of requests that nobody waits for any more."""
        with self._queue.mutex:
            waiting = self._queue.queue
            kept = [each for each in waiting if each is None or not each.answer.cancelled()]
            if len(kept) < len(waiting):
                waiting.clear()
                waiting.extend(kept)
                self._queue.not_full.notify()

    def close(self) -> None:
        """Answer what waits, then end the thread."""
        with self._admission:
            self._stopping = True
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        import torch

        torch.set_num_threads(self._torch_threads)
        while (first := self._queue.get()) is not None:
            batch = [first]
            while len(batch) < self._batch_limit:
                try:
                    following = self._queue.get_nowait()
                except queue.Empty:  # what `empty` says can be out of date: cancelled requests are taken out
                    break
                if following is None:
                    self._answer(batch)
                    return
                batch.append(following)
            self._answer(batch)

    def _answer(self, batch: list[_Waiting]) -> None:
        live = self._in_time([waiting for waiting in batch if not waiting.answer.cancelled()])
        recommender = self._recommender
        if not live or recommender is None:
            return
        begun, started = self._clock(), time.perf_counter()
        small = self._pace.small_is_wise(len(live), *self._spare(live, begun))
        self._busy_until = begun + self._pace.of(small) * len(live)
        if small:
            live = [replace(each, request=replace(each.request, small=True)) for each in live]
        try:
            answers: list[EngineAnswer | Exception] = list(recommender.recommend([each.request for each in live]))
        except Exception as error:  # noqa: BLE001 - raised again where the request waits
            answers = self._one_by_one(recommender, live, error) if len(live) > 1 else [error]
        self._metrics.decode.observe(time.perf_counter() - started)
        self._metrics.batch.observe(len(live))
        self._pace.took(small, (self._clock() - begun) / len(live))
        self._busy_until = None
        for waiting, answer in zip(live, answers, strict=True):
            waiting.loop.call_soon_threadsafe(_settle, waiting.answer, answer)

    def _spare(self, live: list[_Waiting], now: float) -> tuple[float, int, float]:
        """Seconds until the first deadline of a batch, how many wait behind it, and seconds until the last's."""
        first = min((each.request.deadline for each in live if each.request.deadline is not None), default=math.inf)
        with self._queue.mutex:
            waiting = len(self._queue.queue)
            last = self._queue.queue[-1] if waiting else None
        latest = None if last is None else last.request.deadline
        return first - now, waiting, math.inf if latest is None else latest - now

    def _in_time(self, batch: list[_Waiting]) -> list[_Waiting]:
        """Those whose deadline has not passed; the others are told."""
        now, live = self._clock(), []
        for waiting in batch:
            if waiting.request.deadline is None or waiting.request.deadline >= now:
                live.append(waiting.at(now))
            else:
                self._metrics.late.labels("expired").inc()
                error = OverloadedError("the request's deadline passed while it waited for the model")
                waiting.loop.call_soon_threadsafe(_settle, waiting.answer, error)
        return live

    def _one_by_one(
        self, recommender: Recommender, live: list[_Waiting], error: Exception
    ) -> list[EngineAnswer | Exception]:
        """After a batch has failed: nobody else pays for the request that broke it.

        What a history needs may be away; then nobody waits for it a second time, and only requests without a history
        are still asked.
        """
        away = error if isinstance(error, UnavailableError) else None
        answers: list[EngineAnswer | Exception] = []
        for waiting in live:
            if away is not None and waiting.request.history:
                answers.append(away)
                continue
            try:
                answers += recommender.recommend([waiting.request])
            except Exception as single:  # noqa: BLE001 - raised again where the request waits
                away = single if isinstance(single, UnavailableError) else away
                answers.append(single)
        return answers


def _settle(future: asyncio.Future[EngineAnswer], answer: EngineAnswer | Exception) -> None:
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
