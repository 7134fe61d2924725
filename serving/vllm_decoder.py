"""A vLLM server as the decoder: history and eligibility go over HTTP, ranked item indices come back.

The server runs Windfire's plug-in over an exported bundle (docs/vllm.md). Everything behind the decoder (filters,
fallback sources, the last look at the slate) works as with a model of this process.
"""

from __future__ import annotations

import http.client
import time
import weakref
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlsplit

import numpy as np
import orjson
import structlog

from recsys.backends.vllm_format import Question, Wanted, pack_shared
from recsys.backends.vllm_identity import Origin, export_id
from recsys.catalog.arrays import load_json
from recsys.decoding.decoder import DecodeResult, Ranked, Spent, check_request
from recsys.errors import ConfigError, InputError, UnavailableError
from recsys.models.config import RecommenderConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import timedelta

    import numpy.typing as npt

    from recsys.bundle.bundle import Bundle
    from recsys.decoding.eligibility import Eligibility
    from recsys.decoding.log_prior import LogPrior

_CONNECTIONS: Final = 64  # that are kept open between requests
_READ: Final = 1 << 16  # bytes
_NO_ITEMS: Final = np.empty(0, dtype=np.int32)
_log = structlog.stdlib.get_logger(__name__)


class VllmDecoder:
    """Asks vLLM; safe to share between threads.

    The requests of a batch are sent at once, each on a connection of its own, and vLLM puts them into its own batches.
    All of a call's answers must be there within one timeout, from the first connection on.

    What clients are told of a failure is that the model cannot be asked; the reason is the operator's: it stands in the
    error's remedy, and in the log once, until it changes or vLLM answers again.

    Args:
        url: of the server, `http://host:port`.
        export_id: the exported model that answers must come from.
        config: of the model.
        timeout: of one call.
        clock: monotonic seconds.

    Attributes:
        export_id: as given.
        address: host and port that are asked.
        idle: connections that are open and not in use.
    """

    name = "nezha"

    def __init__(
        self,
        url: str,
        *,
        export_id: str,
        config: RecommenderConfig,
        timeout: timedelta,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        parts = urlsplit(url)
        self._secure = parts.scheme == "https"
        usual = http.client.HTTPS_PORT if self._secure else http.client.HTTP_PORT
        # http.client would take the last group of an IPv6 address for the port that is not given
        self.address = parts.hostname or "", usual if parts.port is None else parts.port
        self._path = f"{parts.path.rstrip('/')}/pooling"
        self.export_id = export_id
        self._config = config
        self._seconds = timeout.total_seconds()
        self._clock = clock
        self._lock = Lock()
        self._reason: str | None = None  # of the last failure, None after an answer
        self.idle: list[http.client.HTTPConnection] = []
        weakref.finalize(self, _close_all, self.idle)  # a reload drops the decoder of the bundle before

    @classmethod
    def of(cls, bundle: Bundle, url: str, *, timeout: timedelta, decoder: str = "auto") -> VllmDecoder:
        """The decoder for a bundle whose model vLLM runs.

        Args:
            bundle: opened.
            url: of the server.
            timeout: of one call.
            decoder: the decoder that was asked for.

        Raises:
            ConfigError: another decoder than `nezha` was asked for.
        """
        if decoder not in ("auto", cls.name):
            raise ConfigError(
                "vLLM runs the decoder nezha", field="decoder", value=decoder, remedy="choose auto, or no vLLM"
            )
        manifest = bundle.manifest
        origin = Origin(manifest.model_version, manifest.tokenizer_version)
        config = RecommenderConfig.from_dict(load_json(bundle.model_config_path))
        identity = export_id(origin, bundle.codes, bundle.train_counts)
        return cls(url, export_id=identity, config=config, timeout=timeout)

    def decode(
        self,
        histories: Sequence[npt.NDArray[np.integer]],
        *,
        k: int,
        beam: int,
        eligibility: Eligibility,
        log_prior: LogPrior | None = None,
    ) -> DecodeResult:
        """See `Decoder.decode`.

        Raises:
            ConfigError: with a log-prior, which does not travel.
            InputError: k, beam or an item index out of range.
            UnavailableError: vLLM cannot be reached, fails, does not answer in time, or runs another model.
        """
        check_request(k, beam)
        if log_prior is not None:
            raise ConfigError("vLLM takes no log-prior", field="log_prior", value=type(log_prior).__name__)
        excluded = eligibility.excluded or [_NO_ITEMS] * len(histories)
        if len(excluded) != len(histories):
            raise InputError("one list for each request", field="excluded", value=len(excluded))
        shared = None if eligibility.shared is None else pack_shared(eligibility.shared)
        limit = self._config.max_history
        kept = [np.asarray(history, dtype=np.int32)[-limit:] for history in histories]
        questions = [
            Question(self.export_id, history, Wanted(k, beam, np.unique(np.asarray(denied, dtype=np.int32)), shared))
            for history, denied in zip(kept, excluded, strict=True)
        ]
        answers = self._ask([orjson.dumps({"data": question.to_json()}) for question in questions])
        ranked = [self._ranked(answer) for answer in answers]
        self._reason = None
        positions = 1 + (self._config.levels if self._config.placeholders else 0)
        tokens = sum(len(history) * self._config.levels + positions for history in kept)
        return DecodeResult(ranked, Spent(len(kept), tokens, sum(int(answer["widened"]) for answer in answers)))

    def close(self) -> None:
        """Close the connections that are open."""
        with self._lock:
            _close_all(self.idle)

    def _ask(self, bodies: Sequence[bytes]) -> list[dict[str, Any]]:
        """POST every body, then read every answer."""
        deadline = self._clock() + self._seconds
        open_: list[http.client.HTTPConnection] = []
        try:
            open_.extend(self._sent(body, deadline) for body in bodies)
            answers = [self._answer(connection, body, deadline) for connection, body in zip(open_, bodies, strict=True)]
        except BaseException as error:
            for connection in open_:  # an answer that nobody waits for would be the next request's
                connection.close()
            if isinstance(error, OSError | http.client.HTTPException):
                slow = isinstance(error, TimeoutError)
                raise self._away(f"no answer within {self._seconds:g} s" if slow else repr(error)) from error
            raise
        with self._lock:
            self.idle += open_[: max(0, _CONNECTIONS - len(self.idle))]
        for connection in open_[_CONNECTIONS:]:
            connection.close()
        return answers

    def _sent(self, body: bytes, deadline: float) -> http.client.HTTPConnection:
        """A connection on which the body was sent: one that was open, else a new one."""
        with self._lock:
            connection = self.idle.pop() if self.idle else None
        if connection is not None:
            with suppress(OSError, http.client.HTTPException):
                self._send(connection, body, deadline)
                return connection
            connection.close()  # the server had closed it
        return self._send_anew(body, deadline)

    def _send_anew(self, body: bytes, deadline: float) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(*self.address, timeout=self._left(deadline))
        try:
            connection.connect()
            self._send(connection, body, deadline)
        except BaseException:
            connection.close()
            raise
        return connection

    def _send(self, connection: http.client.HTTPConnection, body: bytes, deadline: float) -> None:
        self._limit(connection, deadline)
        connection.request("POST", self._path, body, {"Content-Type": "application/json"})

    def _answer(self, connection: http.client.HTTPConnection, body: bytes, deadline: float) -> dict[str, Any]:
        self._limit(connection, deadline)
        try:
            response = connection.getresponse()
        except (ConnectionError, http.client.BadStatusLine):  # closed while the request was on its way
            connection.close()
            self._reopen(connection, body, deadline)
            response = connection.getresponse()
        parts = []
        while part := response.read(_READ):
            parts.append(part)
            self._limit(connection, deadline)
        return self._data(response.status, b"".join(parts))

    def _reopen(self, connection: http.client.HTTPConnection, body: bytes, deadline: float) -> None:
        connection.timeout = self._left(deadline)
        connection.connect()
        self._send(connection, body, deadline)

    def _limit(self, connection: http.client.HTTPConnection, deadline: float) -> None:
        """Let the socket wait no longer than the deadline; an HTTP/1.0 server may have closed it already."""
        left = self._left(deadline)
        if connection.sock is not None:
            connection.sock.settimeout(left)

    def _left(self, deadline: float) -> float:
        left = deadline - self._clock()
        if left <= 0:
            raise TimeoutError
        return left

    def _data(self, status: int, body: bytes) -> dict[str, Any]:
        try:
            value = orjson.loads(body)
            if status == http.HTTPStatus.OK:
                data: dict[str, Any] = value["data"]
                return data
            message, field = str(value["error"]["message"]), value["error"].get("param")
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            message, field = "no readable answer", None
        if field == "export_id":
            raise self._away(
                "vLLM runs another model than the bundle",
                f"{message}; `windfire export-vllm` of the bundle that is served, then start vLLM over it",
            )
        if status == http.HTTPStatus.BAD_REQUEST:
            raise InputError(f"vLLM refused the request: {message}", field=field)
        raise self._away(f"status {status}", message)

    def _away(self, reason: str, detail: str = "") -> UnavailableError:
        """The error for a failure of vLLM, which is logged if the one before was another."""
        if reason != self._reason:
            _log.warning("vllm_failed", address=self.address, reason=reason, detail=detail)
        self._reason = reason
        said = f"{reason}: {detail}" if detail else reason
        return UnavailableError(
            "the model cannot be asked", field="vllm_url", value=self.address, remedy=f"look after vLLM: {said}"
        )

    def _ranked(self, answer: dict[str, Any]) -> Ranked:
        """What an answer ranks, if it can be this model's."""
        try:
            same = answer["export_id"] == self.export_id and isinstance(answer["widened"], int)
            items = np.array(cast("list[int]", answer["items"]), dtype=np.int32)
            scores = np.array(cast("list[float]", answer["scores"]), dtype=np.float32)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise self._away("an answer of another form", repr(error)) from error
        inside = not len(items) or bool(items.min() >= 0 and items.max() < self._config.num_items)
        if not same or not inside or items.shape != scores.shape:
            raise self._away("an answer that is not of the model that was asked")
        return Ranked(items, scores)


def _close_all(connections: list[http.client.HTTPConnection]) -> None:
    while connections:
        connections.pop().close()
