"""No item that may not be shown: an independent replay of the catalogue log judges every answer."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import orjson

from benchmarks.figures import Figure
from benchmarks.serving import Arm
from benchmarks.serving_parts.bundles import drawn_histories
from benchmarks.serving_parts.changer import Changer
from benchmarks.serving_parts.replay import Judged, Replay
from benchmarks.serving_parts.rig import rig
from benchmarks.serving_parts.swap import replaced
from benchmarks.serving_parts.traffic import driven_while, figures_of, load_of
from loadtest.running import run_in_loop
from recsys.bundle import load_decoder
from serving.engine import EngineRequest
from serving.stages import BundleRecommender

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.serving import Bench
    from benchmarks.serving_parts.rig import Rig
    from loadtest.answers import Judge
    from loadtest.target import Request

_BATCH: Final = 32  # requests of one call in process
_CHUNK: Final = 20_000  # answers that are held before they are judged
_WARMUP: Final = 2.0


def measure(bench: Bench) -> list[Figure]:
    """Over HTTP while workers are replaced, then in process."""
    figures = list(bench.arm("checker", "http", lambda: _over_http(bench)).figures)
    if bench.settings.checker.in_process:
        figures += bench.arm("checker", "in_process", lambda: _in_process(bench)).figures
    return figures


class Recorder:
    """Notes of every answer what it may be judged by.

    Args:
        changer: knows what was acknowledged.
        inner: another judge, asked first.
    """

    def __init__(self, changer: Changer, inner: Judge) -> None:
        self.answers: list[Judged] = []
        self._changer, self._inner = changer, inner
        self._sent: dict[int, tuple[Request, int, int]] = {}

    def noting(self, requests: Iterator[Request]) -> Iterator[Request]:
        """The same requests; each is noted in the moment before it is sent."""
        for request in requests:
            self._sent[id(request)] = request, self._changer.end, time.time_ns() // 1_000
            yield request

    def __call__(self, request: Request, status: int, body: bytes) -> str | None:
        """A `loadtest.answers.Judge`."""
        _, known, first = self._sent.pop(id(request))
        wrong = self._inner(request, status, body)
        if wrong is None:
            answer = orjson.loads(body)
            sequence = int(answer["catalog_version"].rpartition(".")[2])
            items = [item["item_id"] for item in answer["items"]]
            self.answers.append(Judged(items, sequence, known, first, time.time_ns() // 1_000))
        return wrong


def _over_http(bench: Bench) -> Arm:
    settings = bench.settings.checker
    source = bench.synthetic(bench.sized(settings.items))
    load = load_of(bench.settings, settings.rate, settings.answers * 1.02 / settings.rate + 1.0, _WARMUP)
    with rig(bench.settings, source, workers=settings.workers) as on:
        bundle = on.registry.open_current(verify=False)
        with Changer(on.registry.root / "catalog_log", bundle, settings.changes, bench.settings.seed) as changer:
            recorder = Recorder(changer, on.judge(others=True))

            async def restart(opens: float) -> int:
                return await _restarting(on, opens + load.seconds, settings.restart, settings.workers)

            of, restarts = run_in_loop(driven_while(on.target, load, recorder.noting(on.requests()), recorder, restart))
        replay = Replay(bundle.item_ids, bundle.manifest.catalog_sequence)
        replay.follow(changer.log.read(replay.end, changer.end))
    arm, stem = figures_of("serving.checker", of), "serving.checker"
    wrong = sum(len(replay.wrong(answer)) for answer in recorder.answers)
    behind = sum(answer.sequence < answer.known for answer in recorder.answers)
    shown = sum(len(answer.items) for answer in recorder.answers)
    kept = ("failed", "client_cpu_share", "p99_ms", "offered_rps")
    figures = [
        figure for figure in arm.figures if figure.name.removeprefix(f"{stem}.") in kept or ".tier_" in figure.name
    ]
    answers = len(recorder.answers)
    lasting = "shown, though they could not be at any time from the request's sending to its answer"
    late = "from a catalogue without a change that was acknowledged before the request was sent"
    figures += [
        Figure(f"{stem}.answers", answers, "answers", note="over HTTP, the warm-up's among them"),
        Figure(f"{stem}.ineligible", wrong, "items", n=shown, note=lasting),
        Figure(f"{stem}.behind", behind, "answers", n=answers, note=late),
        Figure(f"{stem}.changes", changer.written, "changes"),
        Figure(f"{stem}.changes_per_s", changer.written / max(changer.seconds, 1e-9), "changes/s"),
        Figure(f"{stem}.restarts", restarts, "workers", note="SIGTERM, one after the other"),
    ]
    return Arm(figures, warnings=arm.warnings)


async def _restarting(on: Rig, ends: float, every: float, workers: int) -> int:
    """Replace a worker at a time; how many were."""
    done = 0
    while time.monotonic() + every < ends:
        await asyncio.sleep(every)
        done += await replaced(on, on.service.worker_pids()[0], workers)
    return done


def _in_process(bench: Bench) -> Arm:
    settings = bench.settings.checker
    bundle = bench.synthetic(bench.sized(settings.items)).open_current(verify=False)
    histories = list(
        drawn_histories(bundle, bench.settings.users, bench.settings.history, bench.settings.seed).values()
    )
    rng = np.random.default_rng(bench.settings.seed)
    with tempfile.TemporaryDirectory(prefix="wf-") as name:
        directory = Path(name) / "catalog_log"
        with Changer(directory, bundle, settings.changes, bench.settings.seed) as changer:
            recommender = BundleRecommender(bundle, load_decoder(bundle), beam=bench.settings.beam, log=changer.log)
            replay, counts = Replay(bundle.item_ids, bundle.manifest.catalog_sequence), _Counts()
            while counts.answers < settings.in_process:
                chunk: list[Judged] = []
                while len(chunk) < min(_CHUNK, settings.in_process - counts.answers):
                    chosen = [histories[place] for place in rng.integers(len(histories), size=_BATCH).tolist()]
                    chunk += _asked(recommender, chosen, bench.settings.n, changer)
                replay.follow(changer.log.read(replay.end, changer.end))
                counts.take(replay, chunk)
    stem = "serving.checker.in_process"
    return Arm([
        Figure(stem, counts.answers, "answers", note="in one process, without HTTP"),
        Figure(f"{stem}_ineligible", counts.wrong, "items", n=counts.shown),
        Figure(f"{stem}_behind", counts.behind, "answers", n=counts.answers),
        Figure(f"{stem}_changes", changer.written, "changes"),
    ])  # fmt: skip


class _Counts:
    """Of judged answers."""

    def __init__(self) -> None:
        self.answers = self.shown = self.wrong = self.behind = 0

    def take(self, replay: Replay, chunk: list[Judged]) -> None:
        self.answers += len(chunk)
        self.shown += sum(len(answer.items) for answer in chunk)
        self.wrong += sum(len(replay.wrong(answer)) for answer in chunk)
        self.behind += sum(answer.sequence < answer.known for answer in chunk)


def _asked(recommender: BundleRecommender, histories: list[list[str]], n: int, changer: Changer) -> list[Judged]:
    """One batch; an answer is judged by the very time that its request names."""
    known, now = changer.end, time.time_ns() // 1_000
    fields: dict[str, Any] = {"n": n, "time": now, "deadline": time.monotonic() + 3_600}
    answers = recommender.recommend([EngineRequest(history=history, **fields) for history in histories])
    return [
        Judged([item.item_id for item in answer.items], int(answer.catalog_version.rpartition(".")[2]), known, now, now)
        for answer in answers
    ]
