"""What the peers answer to the test users: Recall, and how far they agree with the exact search of the same kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.figures import Figure
from recsys.decoding.eligibility import Eligibility
from recsys.evaluation.metrics import padded_lists

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from benchmarks.decoding_parts.lab import History, Lab
    from benchmarks.decoding_parts.settings import PeersSettings
    from recsys.decoding.decoder import Decoder

    Lists = npt.NDArray[np.int32]

_TOGETHER: Final = 64
_DRAWS: Final = 1000  # of the bootstrap over users
EXACT: Final = {"qwen3": "beam", "compact": "flat"}  # what agreement is with, where the other method is of its kind
_NOT_OF_A_KIND: Final = {("compact", "nezha")}  # another model than flat's


def quality_figures(
    backbones: Mapping[str, Mapping[str, Decoder]],
    lab: Lab,
    settings: PeersSettings,
    rng: np.random.Generator,
    say: Callable[[str], None],
) -> list[Figure]:
    """Recall@K and agreement@K of every method at every width, the history not masked.

    A method without a beam is asked once, for as many items as the longest head, and stands under every width.

    Args:
        backbones: decoders by backbone and method.
        lab: the test users.
        settings: of peers.yaml.
        rng: of the bootstrap over users.
        say: told in one line what was done.
    """
    figures = []
    for backbone, decoders in backbones.items():
        for beam in settings.quality_beams:
            ks = [k for k in settings.ks if k <= beam]
            lists = {
                name: answers(decoder, lab.cases.histories[: _users(name, settings)], k=max(ks), beam=beam)
                for name, decoder in decoders.items()
                if name not in settings.slow or beam in settings.beams
            }
            for name, found in lists.items():
                stem = f"decoding.{backbone}.beam{beam}.{name}"
                for k in ks:
                    hit = (found[:, :k] == lab.cases.targets[: len(found), None]).any(axis=1)
                    figures.append(_mean(f"{stem}.recall@{k}", hit.astype(float), rng, "history not masked"))
                    exact = EXACT[backbone]
                    if name != exact and (backbone, name) not in _NOT_OF_A_KIND:
                        shared = overlap(found[:, :k], lists[exact][: len(found), :k])
                        figures.append(_mean(f"{stem}.agreement@{k}", shared, rng, f"share of the items of {exact}"))
        say(f"{backbone}: answered {len(lab.cases.targets)} test users")
    return figures


def _users(method: str, settings: PeersSettings) -> int:
    return settings.hf_users if method in settings.slow else settings.users


def answers(decoder: Decoder, histories: list[History], *, k: int, beam: int) -> Lists:
    """(N, k) items, -1 behind the end of a shorter answer."""
    lists = []
    for begin in range(0, len(histories), _TOGETHER):
        batch = histories[begin : begin + _TOGETHER]
        lists.append(padded_lists(decoder.decode(batch, k=k, beam=beam, eligibility=Eligibility()).ranked, k))
    return np.concatenate(lists)


def overlap(found: Lists, exact: Lists) -> npt.NDArray[np.float64]:
    """(N,) share of each row's exact items that were found, whatever their order."""
    real = exact >= 0
    held = (exact[:, :, None] == found[:, None, :]).any(axis=2) & real
    shares: npt.NDArray[np.float64] = held.sum(axis=1) / np.maximum(real.sum(axis=1), 1)
    return shares


def _mean(name: str, values: npt.NDArray[np.float64], rng: np.random.Generator, note: str) -> Figure:
    draws = rng.choice(values, size=(_DRAWS, len(values))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Figure(name, float(values.mean()), "share", float(low), float(high), len(values), note)
