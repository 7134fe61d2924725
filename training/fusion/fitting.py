"""The table from the training part, the weights from the validation part; both into the run that they belong to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch

from recsys.baselines.neighbours import BLOCK, fit_neighbours
from recsys.bundle.fusion import FUSION, FUSION_MANIFEST, SecondFiles, save_fusion
from recsys.bundle.loading import load_second
from recsys.bundle.writer import check_run, load_run_manifest, model_version_of
from recsys.decoding.building import build_decoder
from recsys.decoding.eligibility import Eligibility
from recsys.decoding.fused import Fusion, Reranker, Second
from recsys.decoding.trie import SidTrie
from recsys.errors import DataError
from recsys.evaluation.metrics import ndcg, ranks_from_ranked
from recsys.models import ItemFeatures
from recsys.storage import read_json, restore_directory, sha256_parts
from training.progress import StepBar, cpu_seconds
from training.recommender.trainer import data_fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from recsys.datasets.prepared import PreparedData
    from recsys.decoding.decoder import Decoder
    from recsys.decoding.fused import CandidateScorer
    from recsys.decoding.neighbours import Neighbours
    from recsys.decoding.second import SecondModel
    from training.fusion.settings import FusionSettings

_BATCH: Final = 256
_K: Final = 10


class _Weights(NamedTuple):
    """Of the second model and of the table, in the order in which equals are preferred."""

    second: float
    table: float


def fit_fusion(
    run: Path, data: PreparedData, settings: FusionSettings, *, second: Path | None = None, show_progress: bool = False
) -> dict[str, Any]:
    """Fit a fusion to a finished run and write it into `run`/fusion; one with the same inputs is not repeated.

    Args:
        run: what `windfire train` wrote; its model must have the decoder `nezha`.
        data: the work directory that the run was trained on.
        settings: of the fitting.
        second: a finished run of the same work directory whose model is `flat`: it scores the candidates, too, and is
            copied into the fusion where its weight is not 0.
        show_progress: whether to draw a progress bar.

    Returns:
        The fusion's manifest: the chosen `weight`, `second` where there is one, and under `validation` NDCG@10 of every
        weight, those beside a second model by its weight.

    Raises:
        ConfigError: the model has no `nezha`, or the second is not `flat`.
        DataError: the run is not finished, or no user has a validation target.
        VersionMismatchError: the run was trained with another tokenizer or on another catalog.
    """
    started = cpu_seconds()
    run_manifest, model_version = load_run_manifest(run), model_version_of(run)
    beside = () if second is None else (model_version_of(second),)
    fingerprint = sha256_parts([data_fingerprint(data), settings.model_dump_json(), model_version, *beside])
    out = run / FUSION
    restore_directory(out)
    if (out / FUSION_MANIFEST).is_file() and (found := read_json(out / FUSION_MANIFEST))["fingerprint"] == fingerprint:
        return dict(found)
    model = check_run(run, run_manifest, data).to("cuda" if torch.cuda.is_available() else "cpu")
    trie = SidTrie.build(data.codes, data.codebook_sizes)
    decoder = build_decoder(model, trie, name="nezha", prior=data.train_counts)
    other = None if second is None else _second(second, data)
    cases = validation_cases(data, settings.evaluate_users)
    blocks, batches = -(-len(data.codes) // BLOCK), -(-len(cases) // _BATCH)
    with StepBar(blocks + batches, 0, visible=show_progress) as tick:
        table = fit_neighbours(
            data, shrink=settings.shrink, neighbours=settings.neighbours, tick=lambda _: tick("neighbours")
        )
        chosen, told = choose_weights(decoder, trie, data, table, settings, other, tick=lambda: tick("validation"))
    details = {
        "settings": settings.model_dump(mode="json"),
        "entries": len(table.items),
        "model_version": model_version,
        "tokenizer_version": data.tokenizer_version,
        "fingerprint": fingerprint,
        "validation": {"users": len(cases), **told},
        "cpu_seconds": round(cpu_seconds() - started, 3),
    }
    weight = 0.0 if chosen.second is None else chosen.second.weight
    kept = SecondFiles(second / "model", weight) if second is not None and weight else None
    return save_fusion(out, chosen, details, second=kept)


def choose_weights(
    decoder: Decoder,
    trie: SidTrie,
    data: PreparedData,
    table: Neighbours,
    settings: FusionSettings,
    other: CandidateScorer | None,
    *,
    tick: Callable[[], None] = lambda: None,
) -> tuple[Fusion, dict[str, Any]]:
    """Try every pair of weights on the validation part, history masked.

    Args:
        decoder: that finds the candidates.
        trie: of the tokenizer.
        data: the work directory.
        table: item-to-item.
        settings: of the fitting.
        other: a second model, None = none.
        tick: called after every batch.

    Returns:
        The best fusion, and NDCG@10 by the table's weight (`ndcg@10`), the same by the second model's where there is
        one (`ndcg@10.second`). Of equals the smaller weight of the second model, then of the table.
    """
    fusions = _tried(table, settings, other)
    cases = validation_cases(data, settings.evaluate_users)
    gains = _validation(decoder, Reranker(trie, data.train_counts), fusions, data, cases, tick)
    return fusions[max(sorted(gains), key=gains.__getitem__)], _told(gains)


def _second(run: Path, data: PreparedData) -> SecondModel:
    manifest = load_run_manifest(run)
    check_run(run, manifest, data)
    features = ItemFeatures(data.codes, data.text, data.collaborative, data.train_counts)
    return load_second(run / "model", features, data.codebook_sizes)


def _tried(table: Neighbours, settings: FusionSettings, other: CandidateScorer | None) -> dict[_Weights, Fusion]:
    """Every pair of weights; 0 always is among both."""
    seconds = (0.0, *settings.second.weights) if other is not None else (0.0,)
    return {
        _Weights(second, weight): Fusion(
            table,
            weight=weight,
            floor=settings.floor,
            decay=settings.decay,
            max_history=settings.max_history,
            candidates=settings.candidates,
            second=None if other is None else Second(other, second),
        )
        for second in seconds
        for weight in (0.0, *settings.weights)
    }


def _told(gains: dict[_Weights, float]) -> dict[str, Any]:
    """NDCG@10 by the table's weight, and the same by the second model's where there is one."""
    by_second: dict[str, dict[str, float]] = {}
    for weights in sorted(gains):
        by_second.setdefault(f"{weights.second:g}", {})[f"{weights.table:g}"] = gains[weights]
    alone = {"ndcg@10": by_second.pop("0")}
    return alone | ({"ndcg@10.second": by_second} if by_second else {})


def validation_cases(data: PreparedData, users: int) -> npt.NDArray[np.int64]:
    """Rows of the validation cases, spread evenly, by length of the history: padding would be most of the work."""
    _, histories, targets = data.sequences.targets("valid")
    if not len(targets):
        raise DataError(
            "no user has a validation target, so that no weight can be chosen",
            field="valid_index",
            value=len(targets),
            remedy="prepare the data with a split that has a validation part",
        )
    chosen = np.unique(np.linspace(0, len(targets) - 1, min(users, len(targets))).astype(np.int64))
    return chosen[np.argsort([len(histories[row]) for row in chosen], kind="stable")]


def _validation(
    decoder: Decoder,
    reranker: Reranker,
    fusions: dict[_Weights, Fusion],
    data: PreparedData,
    cases: npt.NDArray[np.int64],
    tick: Callable[[], None],
) -> dict[_Weights, float]:
    """NDCG@10 of every fusion, history masked."""
    _, histories, targets = data.sequences.targets("valid")
    widest = fusions[max(fusions)]  # every part has a weight, so that it asks all of them
    wanted = max(_K, widest.candidates)
    gains = dict.fromkeys(fusions, 0.0)
    for begin in range(0, len(cases), _BATCH):
        rows = cases[begin : begin + _BATCH]
        batch = [histories[row] for row in rows]
        found = decoder.decode(batch, k=wanted, beam=wanted, eligibility=Eligibility(excluded=batch)).ranked
        pairs = list(zip(found, widest.evidence(batch, found, known=len(data.codes)), strict=True))
        for weights, fusion in fusions.items():
            ranked = [reranker.rank(answer, fusion.worth(own), k=_K) for answer, own in pairs]
            gains[weights] += float(ndcg(ranks_from_ranked(ranked, targets[rows]), _K).sum())
        tick()
    return {weights: gain / len(cases) for weights, gain in gains.items()}
