"""The YAML files beside this module: what the parts measure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field

FOLDER: Final = Path(__file__).parent
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0)]


class Strict(BaseModel):
    """Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Settings = TypeVar("Settings", bound=Strict)


class AnnSettings(Strict):
    """Sizes of the approximate indexes.

    Attributes:
        hnsw_links: per item, faiss's M.
        hnsw_build: candidates looked at while building, efConstruction.
        hnsw_search: candidates looked at while searching, efSearch.
        hnsw_most: items beyond which no graph is built.
        ivf_lists: share of sqrt(items) that is taken as the number of lists.
        ivf_probes: lists looked into.
        pq_bytes: per item.
    """

    hnsw_links: Positive
    hnsw_build: Positive
    hnsw_search: Positive
    hnsw_most: int
    ivf_lists: Share
    ivf_probes: Positive
    pq_bytes: Positive


class GoodputSettings(Strict):
    """The open loop.

    Attributes:
        limits_ms: of the 99th percentile of the time since the intended arrival.
        shares: rates that are tried, rising, as shares of the requests per second in full batches.
        seconds: that a rate is held; longer where `least` requests have not come, at most three times as long.
        least: requests per rate.
        batch: most requests that are answered together.
        recall_share: of the best Recall@10 that a method has to reach.
    """

    limits_ms: list[Positive]
    shares: list[Share]
    seconds: Share
    least: Positive
    batch: Positive
    recall_share: Share


class PeersSettings(Strict):
    """The parts `peers` and `speculative`.

    Attributes:
        seed: of weights and orders.
        dataset: of quality.yaml, which says how it is prepared.
        text: model of the text embeddings instead of the data set's; empty = the data set's.
        users: test users of the quality, spread evenly.
        hf_users: the same for `hf_generate`.
        history: items of the histories that times are taken with.
        answer: items wanted per request; never more than the beam.
        beams: that times are taken with.
        quality_beams: widths that are answered with, for Recall.
        ks: lengths of the answers' heads that Recall and agreement are taken of.
        rounds: times every method is measured at batch 1.
        slow_rounds: the same for `slow`.
        slow: methods that are measured less often.
        batches: requests answered together.
        batch_rounds: times every method answers a batch.
        slow_batch_rounds: the same for `slow`.
        ann: sizes of the approximate indexes.
        goodput: the open loop.
        drafts: widths of the draft as multiples of the beam, for the part `speculative`.
        train: settings of `training.recommender` by shape; what medusa and mtp change follows from their names.
    """

    seed: int
    dataset: str
    text: str = ""
    users: Positive
    hf_users: Positive
    history: Positive
    answer: Positive
    beams: list[Positive]
    quality_beams: list[Positive]
    ks: list[Positive]
    rounds: Positive
    slow_rounds: Positive
    slow: list[str]
    batches: list[Positive]
    batch_rounds: Positive
    slow_batch_rounds: Positive
    ann: AnnSettings
    goodput: GoodputSettings
    drafts: list[Share]
    train: dict[str, dict[str, Any]]


class CrossoverSettings(Strict):
    """The part `crossover`.

    Attributes:
        seed: of codes, vectors and weights.
        items: sizes of the catalogue.
        arithmetic: a larger size that is computed from the largest measured one.
        skew: per level the exponent of the code frequencies, 0 = uniform.
        history: items per request.
        answer: items wanted.
        beams: of nezha.
        d_model: of the trunk.
        layers: of the trunk.
        heads: of the trunk.
        spread: per level, and at last of the item itself, the standard deviation of what it adds to an item's vector.
        rounds: times every method is measured.
        updates: single changes that are timed.
        ann: sizes of the approximate indexes.
    """

    seed: int
    items: list[Positive]
    arithmetic: int
    skew: list[Annotated[float, Field(ge=0)]]
    history: Positive
    answer: Positive
    beams: list[Positive]
    d_model: Positive
    layers: Positive
    heads: Positive
    spread: list[Share]
    rounds: Positive
    updates: Positive
    ann: AnnSettings
