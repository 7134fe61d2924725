"""What is tried beside a trained decoder without training it again; every weight is chosen on validation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from recsys.baselines.selection import choose_ease
from recsys.bundle.fusion import FUSION, load_fusion
from recsys.decoding.fused import FusedDecoder
from recsys.decoding.log_prior import LogPrior
from recsys.evaluation.answers import answer_by_decoder
from recsys.evaluation.metrics import ndcg
from training.fusion.fitting import choose_weights, validation_cases

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from recsys.baselines.scorer import Scorer
    from recsys.datasets.prepared import PreparedData
    from recsys.decoding.decoder import Decoder, DecodeResult
    from recsys.decoding.eligibility import Eligibility
    from recsys.decoding.trie import SidTrie
    from training.fusion.settings import FusionSettings

_USERS: Final = 4000  # validation users that the weight of a prior is chosen by
_FLOOR: Final = 0.01  # added to the dense scores, as the fusion does to the table's


class WithPrior:
    """A decoder that always decodes with the same log-prior."""

    def __init__(self, inner: Decoder, prior: LogPrior) -> None:
        self.name = inner.name
        self._inner, self._prior = inner, prior

    def decode(
        self,
        histories: Sequence[npt.NDArray[np.integer]],
        *,
        k: int,
        beam: int,
        eligibility: Eligibility,
        log_prior: LogPrior | None = None,
    ) -> DecodeResult:
        """See `Decoder.decode`; another log-prior takes the place of its own."""
        chosen = log_prior or self._prior
        return self._inner.decode(histories, k=k, beam=beam, eligibility=eligibility, log_prior=chosen)


def correct_popularity(
    decoder: Decoder, trie: SidTrie, data: PreparedData, weights: Sequence[float], *, beam: int
) -> tuple[Decoder, dict[str, Any]]:
    """Subtract weight * log(1 + training count) from every item's score; negative weights add it.

    Returns:
        The decoder with the best weight, 0 among them, and the NDCG@10 of all.
    """
    rows = validation_cases(data, _USERS)
    _, histories, targets = data.sequences.targets("valid")
    asked = [histories[row] for row in rows]
    logs = np.log1p(data.train_counts.astype(np.float64))
    tried = {weight: WithPrior(decoder, LogPrior(trie, -weight * logs)) for weight in sorted({0.0, *weights})}
    gains = {
        weight: float(ndcg(answer_by_decoder(one, asked, targets[rows], beam=beam, view="masked").ranks, 10).mean())
        for weight, one in tried.items()
    }
    best = max(sorted(gains, key=abs), key=gains.__getitem__)
    return tried[best], {"weight": best, "valid.ndcg@10": {f"{one:g}": gain for one, gain in gains.items()}}


class DenseScores:
    """A baseline that scores every item of the catalogue, as the second model of a fusion: a ceiling, not to be served.

    Args:
        scorer: the baseline.
        items: I.
    """

    def __init__(self, scorer: Scorer, items: int) -> None:
        self._scorer = scorer
        self.count = items

    def scores(
        self, histories: Sequence[npt.NDArray[np.integer]], candidates: Sequence[npt.NDArray[np.integer]]
    ) -> list[npt.NDArray[np.float64]]:
        """Per history (m,) log(max(score, 0) + .01) of its candidates."""
        dense = np.log(np.maximum(self._scorer.score(histories), 0).astype(np.float64) + _FLOOR)  # (B, I)
        return [row[items] for row, items in zip(dense, candidates, strict=True)]

    def positions(self, histories: Sequence[npt.NDArray[np.integer]]) -> int:
        """0: it has no trunk."""
        return 0 * len(histories)


def fuse_dense(
    decoder: Decoder, trie: SidTrie, data: PreparedData, run: Path, fusion: FusionSettings, grid: Mapping[str, Any]
) -> tuple[Decoder, dict[str, Any]]:
    """Rank the decoder's candidates by the whole of EASE, too, beside the table that was fitted to its run.

    Args:
        decoder: `nezha`.
        trie: of the tokenizer.
        data: what all was fitted on.
        run: holds the fitted fusion.
        fusion: its settings; the weights of the second model are tried for EASE.
        grid: `regularisations` and `decays` of EASE.
    """
    ease, _ = choose_ease(data, grid["regularisations"], grid["decays"])
    dense = DenseScores(ease, len(data.codes))
    table = load_fusion(run / FUSION).neighbours
    chosen, gains = choose_weights(decoder, trie, data, table, fusion, dense)
    details = {"weight": chosen.weight, "second": chosen.second.weight if chosen.second else 0.0, "validation": gains}
    return FusedDecoder(decoder, chosen, trie, prior=data.train_counts), details
