"""A second bundle that answers a share of the requests behind the answer: written down, never shown."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from recsys.errors import UnavailableError
from serving.lifecycle.shadow_log import ShadowList, ShadowRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from recsys.bundle.pointers import Share
    from serving.engine import EngineAnswer, EngineRequest, Recommender
    from serving.lifecycle.metrics import LifecycleMetrics
    from serving.lifecycle.shadow_log import ShadowLog

_WAITING: Final = 32
_log = structlog.stdlib.get_logger(__name__)


class _Offered(NamedTuple):
    request: EngineRequest
    live: ShadowList


class Shadow:
    """Asks its bundle in a thread of its own, one request at a time, and only while nobody waits for the model.

    Under load it is the first that is given up: what finds requests waiting, or its own queue full, is dropped and
    counted. What a bundle raises is written down as its answer.

    Args:
        share: its version, and which requests it is asked.
        recommender: its bundle.
        log: where both answers go; closed with the shadow.
        waiting: how many requests wait for the model.
        torch_threads: threads of one tensor operation.
        metrics: counts what became of the sampled requests.
    """

    def __init__(
        self,
        share: Share,
        recommender: Recommender,
        *,
        log: ShadowLog,
        waiting: Callable[[], int],
        torch_threads: int,
        metrics: LifecycleMetrics,
    ) -> None:
        self.share = share
        self.recommender = recommender
        self._log = log
        self._model_queue = waiting
        self._torch_threads = torch_threads
        self._metrics = metrics
        self._queue: queue.Queue[_Offered | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._run, name="windfire-shadow", daemon=True)
        self._thread.start()

    def offer(self, requests: Sequence[EngineRequest], answers: Sequence[EngineAnswer], seconds: float) -> None:
        """Take the sampled ones of an answered batch, if there is room; never waits and never raises.

        Args:
            requests: as answered.
            answers: that are given to those who asked.
            seconds: that the batch took.
        """
        for request, answer in zip(requests, answers, strict=True):
            if request.request_id is None or request.seek is not None or not self.share.takes(request.request_id):
                continue
            live = _listed(answer, seconds, len(requests))
            try:
                self._queue.put_nowait(_Offered(request, live))
            except queue.Full:
                self._metrics.shadow.labels("dropped").inc()

    def close(self) -> None:
        """Drop what waits, end the thread, write what was answered."""
        while True:
            try:
                self._queue.get_nowait()
            except queue.Empty:
                break
        self._queue.put(None)
        self._thread.join()
        self._log.close()

    def _run(self) -> None:
        import torch

        torch.set_num_threads(self._torch_threads)
        while (offered := self._queue.get()) is not None:
            if self._model_queue():
                self._metrics.shadow.labels("dropped").inc()
                continue
            answered = self._answered(offered.request)
            self._metrics.shadow.labels("failed" if answered.error else "answered").inc()
            self._metrics.shadow_seconds.observe(answered.seconds)
            self._write_down(offered, answered)

    def _answered(self, request: EngineRequest) -> ShadowList:
        started = time.perf_counter()
        try:
            (answer,) = self.recommender.recommend([request])
        except Exception as error:  # noqa: BLE001 - finding this is what a shadow is for
            seconds = time.perf_counter() - started
            said = f"{type(error).__name__}: {error}"[:200]
            return ShadowList(self.share.version, [], "", seconds, 1, 0, said)
        return _listed(answer, time.perf_counter() - started, 1)

    def _write_down(self, offered: _Offered, answered: ShadowList) -> None:
        asked = offered.request
        record = ShadowRecord(asked.request_id or "", asked.time, asked.scene, asked.n, offered.live, answered)
        try:
            self._log.append(record)
        except UnavailableError as error:
            self._metrics.shadow.labels("not_written").inc()
            _log.warning("shadow_not_written", error=str(error))


def _listed(answer: EngineAnswer, seconds: float, batch: int) -> ShadowList:
    items = [item.item_id for item in answer.items]
    return ShadowList(answer.bundle_version, items, answer.served_by.value, seconds, batch, answer.ineligible)
