"""Goodput per core at a fixed Recall: requests per second whose 99th percentile stays under a limit.

One process with one thread is server and load at once: requests have Poisson arrival times, the server takes up to a
batch of those that are due, answers them, and a request's latency runs from its intended arrival to the end of its
batch, so that waiting counts. Nothing is simulated: the loop runs in real time. Rates rise; the goodput is the largest
one up to which every rate kept the limit.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from benchmarks.figures import Figure
from recsys.decoding.eligibility import Eligibility

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from benchmarks.decoding_parts.lab import History, Lab
    from benchmarks.decoding_parts.settings import GoodputSettings, PeersSettings
    from recsys.decoding.decoder import Decoder

    Answer = Callable[[Sequence[History]], object]

_HOPELESS: Final = 5.0  # a latency so many times over the largest limit ends a rate
_WARM_UP: Final = 3  # batches
# hf_generate is out of reach of every limit; its times stand in the table of the peers
_METHODS: Final = {"qwen3": ("beam", "medusa", "mtp", "nezha"), "compact": ("nezha", "flat", "ann_hnsw")}


class Rate(NamedTuple):
    """What was seen at one rate: requests per second, their 99th percentile in ms, and how many they were."""

    per_second: float
    p99_ms: float
    requests: int


def goodput_figures(
    backbones: Mapping[str, Mapping[str, Decoder]],
    quality: Sequence[Figure],
    lab: Lab,
    settings: PeersSettings,
    rng: np.random.Generator,
    say: Callable[[str], None],
) -> list[Figure]:
    """`decoding.goodput.<backbone>_<method>...`: each at the narrowest beam that reaches the Recall, or at its widest.

    Args:
        backbones: decoders by backbone and method.
        quality: the figures of `peers_quality`.
        lab: whose test histories are sent.
        settings: of peers.yaml.
        rng: draws the arrivals.
        say: told in one line what was done.
    """
    recall = {figure.name: figure.value for figure in quality if figure.name.endswith(".recall@10")}
    best = max(recall[_recall(*place, beam)] for place in _places(backbones) for beam in settings.quality_beams)
    wanted = settings.goodput.recall_share * best
    figures = []
    for backbone, method in _places(backbones):
        values = {beam: recall[_recall(backbone, method, beam)] for beam in sorted(settings.quality_beams)}
        beam = next((beam for beam, value in values.items() if value >= wanted), max(values))
        k, decoder = min(beam, settings.answer), backbones[backbone][method]
        rates = sweep(
            lambda batch, decoder=decoder, k=k, beam=beam: decoder.decode(  # type: ignore[misc]
                batch, k=k, beam=beam, eligibility=Eligibility()
            ),
            lab.cases.histories,
            settings.goodput,
            rng,
        )
        short = "" if values[beam] >= wanted else ", which misses the Recall asked for"
        note = f"beam {beam}, Recall@10 {values[beam]:.4f}{short}"
        stem = f"decoding.goodput.{backbone}_{method}"
        figures.append(Figure(f"{stem}.recall@10", values[beam], "share", n=len(lab.cases.targets), note=note))
        figures += [_goodput(f"{stem}.p99_{limit}ms", rates, limit, note) for limit in settings.goodput.limits_ms]
        say(f"goodput {backbone} {method}, {note}: " + ", ".join(f"{f.value:.0f}/s" for f in figures[-2:]))
    return figures


def _places(backbones: Mapping[str, Mapping[str, Decoder]]) -> list[tuple[str, str]]:
    return [(backbone, method) for backbone in backbones for method in _METHODS[backbone]]


def _recall(backbone: str, method: str, beam: int) -> str:
    return f"decoding.{backbone}.beam{beam}.{method}.recall@10"


def _goodput(stem: str, rates: Sequence[Rate], limit: int, note: str) -> Figure:
    kept = Rate(0.0, 0.0, 0)
    for rate in rates:
        if rate.p99_ms > limit:
            break
        kept = rate
    return Figure(f"{stem}.requests_per_second", kept.per_second, "requests/s", n=kept.requests, note=note)


def sweep(
    answer: Answer, histories: Sequence[History], settings: GoodputSettings, rng: np.random.Generator
) -> list[Rate]:
    """Rising rates until the 99th percentile breaks the largest limit.

    Args:
        answer: answers a batch.
        histories: sent in order, again and again.
        settings: the open loop.
        rng: draws the arrivals.
    """
    full = [histories[(row * 7) % len(histories)] for row in range(settings.batch)]
    times = []
    for _ in range(_WARM_UP + 3):
        began = time.perf_counter()
        answer(full)
        times.append(time.perf_counter() - began)
    capacity = settings.batch / float(np.median(times[_WARM_UP:]))
    rates = []
    for share in settings.shares:
        rate = share * capacity
        seconds = min(max(settings.seconds, settings.least / rate), 3 * settings.seconds)
        count = max(int(rate * seconds), 1)
        arrivals = np.cumsum(rng.exponential(1 / rate, size=count))
        ms = open_loop(answer, histories, arrivals, settings) * 1e3
        rates.append(Rate(rate, float(np.percentile(ms, 99, method="higher")), count))
        if rates[-1].p99_ms > max(settings.limits_ms):
            break
    return rates


def open_loop(
    answer: Answer, histories: Sequence[History], arrivals: npt.NDArray[np.float64], settings: GoodputSettings
) -> npt.NDArray[np.float64]:
    """Seconds from each intended arrival to its answer; infinite where the loop was given up.

    Args:
        answer: answers a batch.
        histories: one per request, again and again.
        arrivals: (n,) seconds from now, rising.
        settings: the open loop.
    """
    hopeless = _HOPELESS * max(settings.limits_ms) / 1e3
    latency = np.full(len(arrivals), np.inf)
    began, next_one = time.perf_counter(), 0
    while next_one < len(arrivals):
        wait = arrivals[next_one] - (time.perf_counter() - began)
        if wait > 0:
            time.sleep(wait)
        due = int(np.searchsorted(arrivals, time.perf_counter() - began, side="right"))
        end = min(max(due, next_one + 1), next_one + settings.batch)
        answer([histories[number % len(histories)] for number in range(next_one, end)])
        done = time.perf_counter() - began
        latency[next_one:end] = done - arrivals[next_one:end]
        if latency[next_one] > hopeless:
            break
        next_one = end
    return latency
