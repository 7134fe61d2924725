"""When requests should be sent: a Poisson process, drawn block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

_BLOCK: Final = 4096


def poisson_arrivals(rate: float, generator: np.random.Generator) -> Iterator[float]:
    """Seconds from the start, rising without end: gaps are exponential with mean 1 / rate.

    Args:
        rate: per second, positive.
        generator: of the gaps; the same seed gives the same times.
    """
    last = 0.0
    while True:
        times = last + generator.exponential(1.0 / rate, _BLOCK).cumsum()
        yield from times.tolist()
        last = float(times[-1])
