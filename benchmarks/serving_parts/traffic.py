"""Requests, judged answers, and runs as figures."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
import orjson

from benchmarks.figures import Figure
from benchmarks.serving import Arm
from loadtest.figures import run_figures
from loadtest.open_loop import run_open
from loadtest.running import Load
from loadtest.samples import OK
from loadtest.summary import summarize
from loadtest.target import Target
from loadtest.workload import Ids, Workload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    import numpy.typing as npt

    from benchmarks.serving_settings import ServingSettings
    from loadtest.answers import Judge
    from loadtest.running import Run
    from loadtest.summary import Summary
    from loadtest.target import Request
    from recsys.catalog.index import ItemIndex

T = TypeVar("T")
FULL: Final = frozenset({"nezha"})  # tiers of an answer that nothing was taken from
_PLACEHOLDER: Final = "run"


class SlateJudge:
    """Looks at every answer: a list without repetition, as long as it says, of items of the catalogue that it names.

    Args:
        catalogues: bundle version to the ids of its items.
        n: items that were asked for.
        others: whether items that are in no catalogue are allowed, because they came later.

    Attributes:
        versions: bundle version to the number of answers that named it.
    """

    def __init__(self, catalogues: Mapping[str, ItemIndex], n: int, *, others: bool = False) -> None:
        self._catalogues = dict(catalogues)
        self._n, self._others = n, others
        self.versions: Counter[str] = Counter()

    def __call__(self, _request: Request, _status: int, body: bytes) -> str | None:
        """A `loadtest.answers.Judge`."""
        try:
            answer = orjson.loads(body)
            shown = [item["item_id"] for item in answer["items"]]
            version, truncated = answer["bundle_version"], answer["truncated"]
        except (ValueError, KeyError, TypeError):
            return "no_answer"
        self.versions[version] += 1
        if not shown:
            return "empty"
        if len(set(shown)) < len(shown):
            return "twice"
        if (len(shown) < self._n) != truncated or len(shown) > self._n:
            return "length"
        catalogue = self._catalogues.get(version)
        if catalogue is None:
            return "version"
        return "mixed" if not self._others and int(catalogue.lookup(shown).min()) < 0 else None


@dataclass(frozen=True, slots=True)
class Driven:
    """A run and what it comes to."""

    run: Run
    summary: Summary

    @property
    def full(self) -> npt.NDArray[np.bool_]:
        """(R,) requests with a good answer of the full tier."""
        samples = self.run.samples
        tiers = np.array([name in FULL for name in samples.tiers])
        full: npt.NDArray[np.bool_] = (samples.outcome == samples.outcomes.index(OK)) & tiers[samples.tier]
        return full


def load_of(settings: ServingSettings, rate: float, seconds: float, warmup: float) -> Load:
    """A load with the deadline and limits of the settings."""
    return Load(
        rate=rate, seconds=seconds, warmup=warmup, deadline=settings.deadline, timeout=settings.timeout,
        connections=settings.connections, seed=settings.seed,
    )  # fmt: skip


def users_asking(target: Target, users: Path, n: int, seed: int) -> Iterator[Request]:
    """Recommendations for users of a file, drawn evenly, without end."""
    return Workload(users=Ids(file=users), n=n).requests(target, seed)


async def driven(target: Target, load: Load, requests: Iterator[Request], judge: Judge) -> Driven:
    """Send and sum up."""
    run = await run_open(target, load, requests, judge)
    return Driven(run, summarize(run))


def figures_of(stem: str, of: Driven) -> Arm:
    """All figures of a run below a stem such as `serving.load50`, and what is to be said of them."""
    told = run_figures(_PLACEHOLDER, of.run, of.summary)
    plain, behind = f"serving.{_PLACEHOLDER}", len(f"serving.{_PLACEHOLDER}")
    figures = [Figure(**asdict(measured)) for measured in told.measured]
    return Arm(
        [replace(figure, name=f"{stem}{figure.name[behind:]}") for figure in figures],
        refused={name.replace(plain, stem): reason for name, reason in told.refused.items()},
        warnings=[f"{stem}{warning.removeprefix(_PLACEHOLDER)}" for warning in told.warnings],
    )


async def driven_while(
    target: Target, load: Load, requests: Iterator[Request], judge: Judge, action: Callable[[float], Awaitable[T]]
) -> tuple[Driven, T]:
    """Send, sum up, and do something meanwhile.

    Args:
        target: see `driven`, as the next three.
        load: of the run.
        requests: without end.
        judge: of the answers.
        action: given the monotonic second at which the window opens; it is awaited behind the run.
    """
    doing = asyncio.ensure_future(action(time.monotonic() + load.warmup))
    try:
        of = await driven(target, load, requests, judge)
        return of, await doing
    finally:
        doing.cancel()
