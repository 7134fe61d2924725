"""Learning rates."""

from __future__ import annotations

import numpy as np


def warmup_cosine(step: int, *, peak: float, steps: int, warmup: int, final: float) -> float:
    """Linear warm-up, then a cosine down to `final` of the peak at the last step.

    Args:
        step: from 0.
        peak: the largest rate.
        steps: of the run.
        warmup: steps of the warm-up.
        final: share of the peak.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(steps - warmup, 1)
    return peak * (final + (1 - final) * 0.5 * (1 + float(np.cos(np.pi * min(share, 1.0)))))
