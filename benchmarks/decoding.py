"""`windfire bench decoding`: milliseconds per request, every method in every round, and ratios inside the rounds."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from benchmarks.decoding_methods import ENGINES, catalogue, methods
from benchmarks.figures import Figure, Report, environment, now
from recsys.decoding.trie import SidTrie

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from benchmarks.decoding_methods import Call, History
    from benchmarks.decoding_settings import BackboneSettings, DecodingSettings

    Times = npt.NDArray[np.float64]

_WARM_UP: Final = 3
_DRAWS: Final = 1000  # of the bootstrap over rounds


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What all backbones answer from.

    Attributes:
        codes: (I, L) semantic IDs.
        trie: over them.
        histories: one per round.
    """

    codes: npt.NDArray[np.int32]
    trie: SidTrie
    histories: Sequence[History]

    @classmethod
    def draw(cls, settings: DecodingSettings) -> Catalogue:
        """The catalogue and the requests of a seed."""
        rng = np.random.default_rng(settings.seed)
        codes = catalogue(settings, rng)
        shape = (settings.rounds + _WARM_UP, settings.history)
        histories = rng.integers(settings.items, size=shape, dtype=np.int32)
        return cls(codes, SidTrie.build(codes, tuple(settings.codebooks)), list(histories))


def bench(settings: DecodingSettings, command: str, *, say: Callable[[str], None]) -> Report:
    """Time every backbone, beam and number of threads.

    A name with `_2threads` behind the backbone was measured with two threads, one without with one.

    Args:
        settings: of decoding.yaml.
        command: the command line that repeats this, for the report.
        say: told in one line what was done.
    """
    started, machine = now(), environment()
    drawn = Catalogue.draw(settings)
    nodes = [drawn.trie.nodes(depth) for depth in range(1, drawn.trie.levels + 1)]
    say(f"{settings.items:,} items, prefixes per depth {nodes}")
    figures: list[Figure] = []
    before = torch.get_num_threads()
    try:
        for threads in settings.threads:
            torch.set_num_threads(threads)
            for name, backbone in settings.backbones.items():
                if backbone is not None:
                    shown = name if threads == 1 else f"{name}_{threads}threads"
                    figures += _of_backbone(shown, backbone, settings, drawn, say)
    finally:
        torch.set_num_threads(before)
    kept = settings.model_dump() | {"prefixes": nodes}
    return Report(command, kept, [settings.seed], figures, started, machine | {"threads": settings.threads})


def _of_backbone(
    name: str,
    backbone: BackboneSettings,
    settings: DecodingSettings,
    drawn: Catalogue,
    say: Callable[[str], None],
) -> list[Figure]:
    rng = np.random.default_rng(settings.seed)
    figures: list[Figure] = []
    for beam in settings.beams:
        calls = methods(backbone, settings, drawn.codes, drawn.trie, beam)
        found = beam_figures(f"decoding.{name}.beam{beam}", interleaved(calls, settings, drawn.histories, rng), rng)
        figures += found
        shown = [f"{figure.name.split('.')[-2]} {figure.value:.2f}" for figure in found if figure.unit == "ms"]
        say(f"{name}, beam {beam}, ms: {', '.join(shown)}")
    return figures


def interleaved(
    calls: Mapping[str, Call], settings: DecodingSettings, histories: Sequence[History], rng: np.random.Generator
) -> dict[str, Times]:
    """Milliseconds per round of every method, (rounds,) each; NaN where a slow method was left out.

    A method is called twice in its turn, for different histories; the second call is timed.

    Args:
        calls: by method.
        settings: rounds, and which methods are slow.
        histories: one more than rounds for every warm-up.
        rng: draws the order inside each round.
    """
    for history in histories[:_WARM_UP]:
        for call in calls.values():
            call(history)
    names = list(calls)
    times = {name: np.full(settings.rounds, np.nan) for name in names}
    stride = max(settings.rounds // settings.slow_rounds, 1)
    for turn, history in enumerate(histories[_WARM_UP:]):
        for place in rng.permutation(len(names)):
            name = names[place]
            if name not in settings.slow or turn % stride == 0:
                calls[name](histories[turn])  # a server runs one model: its weights and code are in the caches
                began = time.perf_counter_ns()
                calls[name](history)
                times[name][turn] = (time.perf_counter_ns() - began) / 1e6
    return times


def beam_figures(stem: str, times: Mapping[str, Times], rng: np.random.Generator) -> list[Figure]:
    """Medians with intervals, the ratios to the same engine's prefill, and that of the exact beam to nezha.

    Args:
        stem: `decoding.<backbone>.beam<B>`.
        times: milliseconds per round by method; ratios are taken inside rounds.
        rng: of the bootstrap over rounds.
    """
    figures = []
    for name, values in times.items():
        figures.append(_median(f"{stem}.{name}.ms", values, "ms", rng))
        prefill = _prefill_of(name)
        if name != prefill:
            figures.append(_median(f"{stem}.{name}.over_prefill", values / times[prefill], "ratio", rng))
    if "beam" in times:
        figures.append(_median(f"{stem}.beam.over_nezha", times["beam"] / times["nezha"], "ratio", rng))
    return figures


def _prefill_of(name: str) -> str:
    """The prefill of the same engine: by another's the ratio would speak of the engines."""
    return next((f"prefill_{engine}" for engine in ENGINES if name.endswith(f"_{engine}")), "prefill")


def _median(name: str, values: Times, unit: str, rng: np.random.Generator) -> Figure:
    measured = values[~np.isnan(values)]
    draws = np.median(rng.choice(measured, size=(_DRAWS, len(measured))), axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    note = "median over rounds" if unit == "ms" else "median of the ratios inside rounds"
    return Figure(name, float(np.median(measured)), unit, float(low), float(high), len(measured), note)
