"""The table from the training part, the weight from the validation part; both into the run that they belong to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from recsys.baselines.neighbours import BLOCK, fit_neighbours
from recsys.bundle.fusion import FUSION, FUSION_MANIFEST, save_fusion
from recsys.bundle.writer import check_run, load_run_manifest, model_version_of
from recsys.decoding.building import build_decoder
from recsys.decoding.eligibility import Eligibility
from recsys.decoding.fused import Fusion, Reranker
from recsys.decoding.trie import SidTrie
from recsys.errors import DataError
from recsys.evaluation.metrics import ndcg, ranks_from_ranked
from recsys.storage import read_json, restore_directory, sha256_parts
from training.progress import StepBar, cpu_seconds
from training.recommender.trainer import data_fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from recsys.datasets.prepared import PreparedData
    from recsys.decoding.decoder import Decoder
    from recsys.decoding.neighbours import Neighbours
    from training.fusion.settings import FusionSettings

_BATCH: Final = 256
_K: Final = 10


def fit_fusion(
    run: Path, data: PreparedData, settings: FusionSettings, *, show_progress: bool = False
) -> dict[str, Any]:
    """Fit a fusion to a finished run and write it into `run`/fusion; one with the same inputs is not repeated.

    Args:
        run: what `windfire train` wrote; its model must have the decoder `nezha`.
        data: the work directory that the run was trained on.
        settings: of the fitting.
        show_progress: whether to draw a progress bar.

    Returns:
        The fusion's manifest: the chosen `weight`, and under `validation` NDCG@10 of every weight.

    Raises:
        ConfigError: the model has no `nezha`.
        DataError: the run is not finished, or no user has a validation target.
        VersionMismatchError: the run was trained with another tokenizer or on another catalog.
    """
    started = cpu_seconds()
    run_manifest, model_version = load_run_manifest(run), model_version_of(run)
    fingerprint = sha256_parts([data_fingerprint(data), settings.model_dump_json(), model_version])
    out = run / FUSION
    restore_directory(out)
    if (out / FUSION_MANIFEST).is_file() and (found := read_json(out / FUSION_MANIFEST))["fingerprint"] == fingerprint:
        return dict(found)
    model = check_run(run, run_manifest, data).to("cuda" if torch.cuda.is_available() else "cpu")
    trie = SidTrie.build(data.codes, data.codebook_sizes)
    decoder = build_decoder(model, trie, name="nezha", prior=data.train_counts)
    cases = _cases(data, settings.evaluate_users)
    blocks, batches = -(-len(data.codes) // BLOCK), -(-len(cases) // _BATCH)
    with StepBar(blocks + batches, 0, visible=show_progress) as tick:
        table = fit_neighbours(
            data, shrink=settings.shrink, neighbours=settings.neighbours, tick=lambda _: tick("neighbours")
        )
        reranker = Reranker(trie, data.train_counts)
        gains = _validation(
            decoder, reranker, _fusion(table, settings, 0.0), data, cases, settings.weights, lambda: tick("validation")
        )
    weight = max(sorted(gains), key=gains.__getitem__)  # the smallest of equals
    details = {
        "settings": settings.model_dump(mode="json"),
        "entries": len(table.items),
        "model_version": model_version,
        "tokenizer_version": data.tokenizer_version,
        "fingerprint": fingerprint,
        "validation": {"users": len(cases), "ndcg@10": {f"{one:g}": gains[one] for one in sorted(gains)}},
        "cpu_seconds": round(cpu_seconds() - started, 3),
    }
    return save_fusion(out, _fusion(table, settings, weight), details)


def _fusion(table: Neighbours, settings: FusionSettings, weight: float) -> Fusion:
    return Fusion(
        table,
        weight=weight,
        floor=settings.floor,
        decay=settings.decay,
        max_history=settings.max_history,
        candidates=settings.candidates,
    )


def _cases(data: PreparedData, users: int) -> npt.NDArray[np.int64]:
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
    fusion: Fusion,
    data: PreparedData,
    cases: npt.NDArray[np.int64],
    weights: tuple[float, ...],
    tick: Callable[[], None],
) -> dict[float, float]:
    """NDCG@10 by weight, history masked; 0 is always among them."""
    _, histories, targets = data.sequences.targets("valid")
    gains = dict.fromkeys((0.0, *weights), 0.0)
    wanted = max(_K, fusion.candidates)
    for begin in range(0, len(cases), _BATCH):
        rows = cases[begin : begin + _BATCH]
        batch = [histories[row] for row in rows]
        found = decoder.decode(batch, k=wanted, beam=wanted, eligibility=Eligibility(excluded=batch)).ranked
        pairs = list(zip(found, fusion.scores(batch, found), strict=True))
        for weight in gains:
            ranked = [reranker.rank(answer, own, weight=weight, floor=fusion.floor, k=_K) for answer, own in pairs]
            gains[weight] += float(ndcg(ranks_from_ranked(ranked, targets[rows]), _K).sum())
        tick()
    return {weight: gain / len(cases) for weight, gain in gains.items()}
