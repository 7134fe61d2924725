"""The part `speculative`: drafts of several widths against `beam`, on the trained weights of the peers.

Stems are `decoding.speculative.beam<B>.<method>`; `draft150` drafts 1.5 times the beam. On a processor that computes
without waiting a forward costs what its tokens cost; the tokens then foretell the time, and the two ratios to `beam`
stand side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from benchmarks.decoding_parts.lab import MODELS, Lab, open_lab, prepare
from benchmarks.decoding_parts.peers import CONFIG, prefill, whole
from benchmarks.decoding_parts.peers_tables import cell, stems
from benchmarks.decoding_parts.settings import PeersSettings
from benchmarks.decoding_parts.timing import middle, ratio, take_turns
from benchmarks.figures import Figure, Report, environment, now
from benchmarks.settings_file import load_settings
from benchmarks.table import Table
from recsys.decoding.beam import BeamDecoder
from recsys.decoding.eligibility import Eligibility
from recsys.decoding.speculative import SpeculativeDecoder

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.decoding_parts import Request
    from recsys.decoding.decoder import Decoder, Spent

_COUNTED: Final = 100  # requests that forwards, tokens and acceptance are counted over


def measure(request: Request) -> Report:
    """Prepare, train and time.

    Raises:
        DataError: the data set is not there.
    """
    settings = load_settings(PeersSettings, request.config or CONFIG, quick=request.quick)
    work = request.work / "quick" if request.quick else request.work
    data = prepare(settings, work, say=request.say)
    lab = open_lab(data, settings, work, say=request.say, names={"token": MODELS["token"]})
    return report(lab, settings, request.command, say=request.say)


def report(lab: Lab, settings: PeersSettings, command: str, *, say: Callable[[str], None]) -> Report:
    """Everything that is measured once the model is there, on one thread."""
    started, machine = now(), environment()
    rng = np.random.default_rng(settings.seed)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        figures: list[Figure] = []
        for beam in settings.beams:
            figures += _of_beam(beam, lab, settings, rng)
            ratios = [f"{f.name.split('.')[-2]} {f.value:.3f}" for f in figures if f.name.endswith("over_beam")]
            say(f"beam {beam}, time over beam's: {', '.join(ratios[-2 * len(settings.drafts) :])}")
    finally:
        torch.set_num_threads(before)
    return Report(command, settings.model_dump(), [settings.seed], figures, started, machine | {"threads": 1})


def _of_beam(beam: int, lab: Lab, settings: PeersSettings, rng: np.random.Generator) -> list[Figure]:
    model, trie, prior = lab.token(), lab.trie, lab.data.train_counts
    decoders: dict[str, Decoder] = {"beam": BeamDecoder(model, trie, prior=prior)}
    for draft in settings.drafts:
        decoders[f"draft{round(100 * draft)}"] = SpeculativeDecoder(model, trie, prior=prior, draft=draft)
    k = min(beam, settings.answer)
    calls = {name: whole(decoder, lab.long, k=k, beam=beam) for name, decoder in decoders.items()}
    calls["prefill"] = prefill(model, lab.long)
    times = take_turns(calls, dict.fromkeys(calls, settings.rounds), rng)
    figures, stem = [], f"decoding.speculative.beam{beam}"
    for name, values in times.items():
        figures.append(middle(f"{stem}.{name}.ms", values, "ms", rng))
        if name.startswith("draft"):
            figures.append(ratio(f"{stem}.{name}.over_beam", values, times["beam"], rng))
    spent = {name: _spent(decoder, lab, k=k, beam=beam) for name, decoder in decoders.items()}
    own = np.mean([one.tokens for one in spent["beam"]])
    for name, found in spent.items():
        tokens = float(np.mean([one.tokens for one in found]))
        forwards = float(np.mean([one.forwards for one in found]))
        figures.append(Figure(f"{stem}.{name}.forwards", forwards, "forwards", n=len(found), note="mean per request"))
        figures.append(Figure(f"{stem}.{name}.tokens", tokens, "tokens", n=len(found), note="mean per request"))
        if name != "beam":
            figures.append(Figure(f"{stem}.{name}.tokens_over_beam", tokens / float(own), "ratio", n=len(found)))
            figures += _accepted(f"{stem}.{name}", found)
    return figures


def _spent(decoder: Decoder, lab: Lab, *, k: int, beam: int) -> list[Spent]:
    everything = Eligibility()
    return [decoder.decode([history], k=k, beam=beam, eligibility=everything).spent for history in lab.long[:_COUNTED]]


def _accepted(stem: str, found: list[Spent]) -> list[Figure]:
    """Per level from the second to the last but one; the first stands at the prompt's end, the last is no draft."""
    wanted = np.sum([one.wanted for one in found], axis=0, dtype=int)
    drafted = np.sum([one.drafted for one in found], axis=0, dtype=int)
    return [
        Figure(f"{stem}.accepted_level{level}", held / asked, "share", n=int(asked), note="of the backbone's prefixes")
        for level, (asked, held) in enumerate(zip(wanted, drafted, strict=True), start=2)
        if asked
    ]


def speculative_table(figures: dict[str, Figure]) -> Table:
    """Tokens and time beside `beam`'s."""
    accepted = sorted({name.rpartition(".")[2] for name in figures if ".accepted_level" in name})
    columns = ["ms", "over_beam", "tokens_over_beam", "tokens", "forwards", *accepted]
    forms = [".3g", ".3f", ".3f", ".0f", ".2f", *([".3f"] * len(accepted))]
    rows = []
    for stem, label in stems(figures, "ms"):
        cells = (cell(figures, f"{stem}.{column}", form) for column, form in zip(columns, forms, strict=True))
        rows.append([label.removeprefix("speculative, "), *cells])
    shown = [one.replace("accepted_level", "accepted, level ") for one in accepted]
    header = ["beam, method", "ms", "time over beam", "tokens over beam", "tokens", "forwards", *shown]
    return Table("speculative against beam, one thread", header, rows)


TABLES: Final[dict[str, Callable[[dict[str, Figure]], Table]]] = {"": speculative_table}
