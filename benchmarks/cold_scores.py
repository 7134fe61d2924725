"""Whether adding and removing items moves the score of any other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks.figures import Figure
from recsys.decoding.added import ColdPrior
from recsys.decoding.eligibility import Eligibility

if TYPE_CHECKING:
    from benchmarks.cold_later import Cases, Later
    from benchmarks.cold_sources import Writer


def changed_scores(stem: str, writer: Writer, later: Later, cases: Cases, *, limit: int, remove: int) -> list[Figure]:
    """Compare the bits of all scores before and after later items were added and the most popular ones removed.

    Args:
        stem: how the figures' names begin.
        writer: the model.
        later: the items that are added.
        cases: of which some histories are taken.
        limit: histories, at most.
        remove: most popular items that are removed.

    Returns:
        scores that were compared, those whose bits changed, and the largest change.
    """
    histories = [history for history in cases.some(limit).without_new() if len(history)]
    decoder = writer.decoder(later)
    catalogue, segments = writer.live(later.codes, ColdPrior())
    popular = np.argsort(-writer.counts, kind="stable")[:remove]
    catalogue.remove(popular)
    count = len(writer.counts)
    compared = changed = 0
    largest = 0.0
    for history in histories:
        before = np.full(count, np.nan, dtype=np.float32)
        after = before.copy()
        for scores, eligibility in ((before, Eligibility()), (after, segments.eligibility([]))):
            found = decoder.decode([history], k=catalogue.items, beam=catalogue.items, eligibility=eligibility).ranked[
                0
            ]
            trained = found.items < count
            scores[found.items[trained]] = found.scores[trained]
        both = np.isfinite(before) & np.isfinite(after)
        compared += int(both.sum())
        changed += int((before[both].view(np.uint32) != after[both].view(np.uint32)).sum())
        largest = max(largest, float(np.abs(before[both] - after[both]).max(initial=0.0)))
    note = f"{len(later.rows)} items added, {remove} removed; {len(histories)} histories"
    return [
        Figure(f"{stem}.scores.compared", compared, "scores", note=note),
        Figure(f"{stem}.scores.changed", changed, "scores", n=compared, note=note),
        Figure(f"{stem}.scores.largest_change", largest, "nats", n=compared, note=note),
    ]
