"""The part `peers`: generative decoders and their rivals on the same prompts, beam, constraint and weights.

Stems are `decoding.<backbone>.beam<B>.<method>`; backbones:

    qwen3       a Qwen3-shaped Hugging Face decoder, the token shape, trained: hf_generate, beam, speculative, medusa,
                mtp, nezha
    own         our own decoder of the same sizes, untrained: what does not depend on the weights
    compact     one position per item, trained: nezha, and on the flat model of the same trunk flat, ann_hnsw, ann_ivfpq

vLLM's own beam and `nezha` inside vLLM need an environment of their own and stand in a benchmark of theirs.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from benchmarks.decoding_parts.ann import BUILDERS, AnnDecoder, faiss_threads
from benchmarks.decoding_parts.goodput import goodput_figures
from benchmarks.decoding_parts.hf_generate import HfGenerateDecoder
from benchmarks.decoding_parts.lab import Lab, open_lab, prepare, untrained
from benchmarks.decoding_parts.peers_quality import quality_figures
from benchmarks.decoding_parts.peers_tables import goodput_table, quality_table, throughput_table, times_table
from benchmarks.decoding_parts.settings import FOLDER, PeersSettings
from benchmarks.decoding_parts.timing import middle, percentiles, ratio, take_turns
from benchmarks.figures import Figure, Report, environment, now
from benchmarks.settings_file import load_settings
from recsys.decoding.beam import BeamDecoder
from recsys.decoding.eligibility import Eligibility
from recsys.decoding.flat import FlatDecoder
from recsys.decoding.histories import pad_histories
from recsys.decoding.nezha import NezhaDecoder
from recsys.decoding.speculative import SpeculativeDecoder
from recsys.models import TokenRecommender

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.decoding_parts import Request
    from benchmarks.decoding_parts.lab import History
    from benchmarks.table import Table
    from recsys.decoding.decoder import Decoder
    from recsys.models import Recommender

    Decoders = dict[str, Decoder]
    Call = Callable[[int], object]

CONFIG: Final = FOLDER / "peers.yaml"
_EVERYTHING: Final = Eligibility()

TABLES: Final[dict[str, Callable[[dict[str, Figure]], Table]]] = {
    "": times_table,
    "throughput": throughput_table,
    "quality": quality_table,
    "goodput": goodput_table,
}


def measure(request: Request) -> Report:
    """Prepare, train, time, answer the test users and hold rates.

    Raises:
        DataError: the data set is not there.
    """
    settings = load_settings(PeersSettings, request.config or CONFIG, quick=request.quick)
    work = request.work / "quick" if request.quick else request.work
    lab = open_lab(prepare(settings, work, say=request.say), settings, work, say=request.say)
    return report(lab, settings, request.command, say=request.say)


def report(lab: Lab, settings: PeersSettings, command: str, *, say: Callable[[str], None]) -> Report:
    """Everything that is measured once the models are there, on one thread."""
    started, machine = now(), environment()
    rng = np.random.default_rng(settings.seed)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with faiss_threads(1):
            backbones = all_decoders(lab, settings)
            figures = [
                figure for name in backbones for figure in _times(name, backbones[name], lab, settings, rng, say)
            ]
            trained = {name: backbones[name] for name in ("qwen3", "compact")}
            quality = quality_figures(trained, lab, settings, rng, say)
            figures += quality
            figures += goodput_figures(trained, quality, lab, settings, rng, say)
    finally:
        torch.set_num_threads(before)
    kept = settings.model_dump() | {
        "items": lab.trie.items, "codebook_sizes": list(lab.trie.sizes), "train_cpu_seconds": lab.cpu_seconds,
    }  # fmt: skip
    return Report(command, kept, [settings.seed], figures, started, machine | {"threads": 1})


def all_decoders(lab: Lab, settings: PeersSettings) -> dict[str, Decoders]:
    """Every decoder, by backbone and method."""
    trie, prior = lab.trie, lab.data.train_counts
    token, compact, flat = lab.token(), lab.compact(), lab.flat()
    vectors = flat.item_vectors().detach().numpy()
    qwen3: Decoders = {
        "hf_generate": HfGenerateDecoder(token, lab.data.codes, prior=prior),
        "beam": BeamDecoder(token, trie, prior=prior),
        "speculative": SpeculativeDecoder(token, trie, prior=prior, draft=settings.drafts[0]),
        "medusa": NezhaDecoder(lab.token("medusa"), trie, prior=prior),
        "mtp": NezhaDecoder(lab.token("mtp"), trie, prior=prior),
        "nezha": NezhaDecoder(token, trie, prior=prior),
    }
    own: Decoders = {
        "beam": BeamDecoder(untrained(lab, "token", settings.seed), trie, prior=prior),
        "medusa": NezhaDecoder(untrained(lab, "medusa", settings.seed), trie, prior=prior),
        "mtp": NezhaDecoder(untrained(lab, "mtp", settings.seed), trie, prior=prior),
        "nezha": NezhaDecoder(untrained(lab, "token", settings.seed), trie, prior=prior),
    }
    shared: Decoders = {"nezha": NezhaDecoder(compact, trie, prior=prior), "flat": FlatDecoder(flat)}
    for name, build in BUILDERS.items():
        shared[name] = AnnDecoder(flat, build(vectors, settings.ann))
    return {"qwen3": qwen3, "own": own, "compact": shared}


def prefill(model: Recommender, histories: list[History]) -> Call:
    """The backbone over one history alone, as a call that is given a number."""

    def call(number: int) -> object:
        items, lengths = pad_histories([histories[number % len(histories)]], items=model.config.num_items)
        with torch.inference_mode():
            return model.read(items, lengths) if isinstance(model, TokenRecommender) else model.encode(items, lengths)

    return call


def whole(decoder: Decoder, histories: list[History], *, k: int, beam: int, batch: int = 1) -> Call:
    """Whole answers to `batch` histories, as a call that is given a number."""

    def call(number: int) -> object:
        chosen = [histories[(number * batch + row) % len(histories)] for row in range(batch)]
        return decoder.decode(chosen, k=k, beam=beam, eligibility=_EVERYTHING)

    return call


def _times(
    backbone: str,
    decoders: Decoders,
    lab: Lab,
    settings: PeersSettings,
    rng: np.random.Generator,
    say: Callable[[str], None],
) -> list[Figure]:
    figures = []
    for beam in settings.beams:
        calls = _calls(decoders, lab, beam, settings, batch=1)
        calls["prefill"] = prefill(_model_of(backbone, lab, settings.seed), lab.long)
        rounds = {name: settings.slow_rounds if name in settings.slow else settings.rounds for name in calls}
        began = time.monotonic()
        times = take_turns(calls, rounds, rng)
        stem = f"decoding.{backbone}.beam{beam}"
        for name, values in times.items():
            figures += [middle(f"{stem}.{name}.ms", values, "ms", rng), *percentiles(f"{stem}.{name}", values)]
            if name != "nezha":
                figures.append(ratio(f"{stem}.{name}.over_nezha", values, times["nezha"], rng))
        for batch in settings.batches:
            figures += _throughput(stem, _calls(decoders, lab, beam, settings, batch=batch), batch, settings, rng)
        say(f"{backbone}, beam {beam}: {len(calls)} methods, {time.monotonic() - began:.0f} s")
    return figures


def _calls(decoders: Decoders, lab: Lab, beam: int, settings: PeersSettings, *, batch: int) -> dict[str, Call]:
    k = min(beam, settings.answer)
    return {name: whole(decoder, lab.long, k=k, beam=beam, batch=batch) for name, decoder in decoders.items()}


def _throughput(
    stem: str, calls: Mapping[str, Call], batch: int, settings: PeersSettings, rng: np.random.Generator
) -> list[Figure]:
    rounds = {
        name: settings.slow_batch_rounds if name in settings.slow else settings.batch_rounds for name in calls
    }  # fmt: skip
    times = take_turns(calls, rounds, rng, warm_up=0)
    note = "median over batches"
    return [
        middle(f"{stem}.{name}.batch{batch}_per_second", batch / values * 1e3, "requests/s", rng, note)
        for name, values in times.items()
    ]


def _model_of(backbone: str, lab: Lab, seed: int) -> Recommender:
    if backbone == "qwen3":
        return lab.token()
    return untrained(lab, "token", seed) if backbone == "own" else lab.compact()
