"""`windfire bench cold`: items that come after training, by what is declared of them and by their content.

A share of the items and all their events are taken away before anything is fitted; afterwards they are added as an
upsert adds them. As many other items are taken away, too: what has to be chosen is chosen on validation cases by
adding those instead, so that nothing is chosen by what is measured. All work lies below one folder and is not repeated
while its inputs and settings are the same; it does not notice changes of the code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from benchmarks.cold_data import ColdData, prepare
from benchmarks.cold_figures import exposures, hits, source_figures, unfairness
from benchmarks.cold_later import Cases, Later, cases_of, live_index, make_later, text_codes
from benchmarks.cold_scores import changed_scores
from benchmarks.cold_sources import Nearest, Writer, merge, written
from benchmarks.figures import Figure, Report, environment, now
from benchmarks.quality import Quality, public_sources
from benchmarks.quality_settings import QualitySettings
from benchmarks.settings_file import load_settings
from recsys.decoding.added import ColdPrior
from recsys.semantic_ids.artefact import Artefact
from recsys.storage import sha256_parts, write_bytes_atomically
from training.recommender.settings import TrainSettings
from training.recommender.trainer import data_fingerprint, train

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    Lists = npt.NDArray[np.int32]

CONFIG: Final = Path(__file__).with_name("cold.yaml")
STEM: Final = "features.cold"
Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0, le=1)]
Choice = TypeVar("Choice")


class Prior(BaseModel):
    """`recsys.decoding.added.ColdPrior`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    penalty: Annotated[float, Field(ge=0, le=20)] = 0.0
    lift: Annotated[float, Field(ge=0, le=20)] = 0.0

    def cold(self) -> ColdPrior:
        """As a catalogue takes it."""
        return ColdPrior(self.penalty, self.lift)


class ColdSettings(BaseModel):
    """The whole benchmark; cold.yaml says what each field is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    share: Annotated[float, Field(gt=0, le=0.25)]
    holdout_seed: Annotated[int, Field(ge=0)]
    seeds: Annotated[list[int], Field(min_length=1)]
    replicates: Positive
    answer: Annotated[int, Field(ge=50)]
    beam: Positive
    cases: Positive | None
    choice_cases: Positive
    score_cases: Positive
    remove: Positive
    train: dict[str, Any]
    offline: dict[str, Any]
    priors: Annotated[list[Prior], Field(min_length=1)]
    decays: Annotated[list[Weight], Field(min_length=1)]
    discounts: Annotated[list[Weight], Field(min_length=1)]
    shares: Annotated[list[Weight], Field(min_length=1)]

    @classmethod
    def load(cls, path: Path = CONFIG, *, quick: bool = False) -> ColdSettings:
        """Read cold.yaml, or another file of its form.

        Raises:
            ConfigError: not YAML, or a field that is unknown or out of range.
        """
        return load_settings(cls, path, quick=quick)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Later items, and the cases in which they are wanted or were had.

    Attributes:
        later: the items.
        cases: of the full data set.
        text_only: (n, L) the later items' semantic IDs without a guessed collaboration.
    """

    later: Later
    cases: Cases
    text_only: npt.NDArray[np.int32]


def bench(
    settings: ColdSettings, work: Path, command: str, *, quick: bool = False, say: Callable[[str], None]
) -> Report:
    """Take items away, train, add them, and measure.

    Args:
        settings: of cold.yaml.
        work: that of `windfire bench quality`; finished parts are kept there.
        command: the command line that repeats this, for the report.
        quick: the whole data set is prepared as the quality benchmark's --quick does.
        say: told in one line what was done.

    Raises:
        DataError: the data set is not there.
        CommandError: an offline job failed.
    """
    started = now()
    quality = Quality(QualitySettings.load(quick=quick), work, public_sources(), say)
    quality.prepare(settings.dataset)
    tables, folder = work / "data" / settings.dataset / "tables", work / "cold" / settings.dataset
    data = prepare(
        quality.prepared(settings.dataset), tables, folder,
        share=settings.share, seed=settings.holdout_seed, offline=settings.offline, say=say,
    )  # fmt: skip
    figures, chosen = Measurement(settings, data, folder, say).run()
    values = settings.model_dump() | {"chosen": chosen}
    return Report(command, values, settings.seeds, figures, started, environment())


class Measurement:
    """One data set without its held-out items, under every seed.

    Args:
        settings: of cold.yaml.
        data: what was fitted without them.
        folder: keeps runs and lists.
        say: told in one line what was done.

    Attributes:
        measured: what figures are about.
        choice: what choices are made by.
        wanted: share of all validation cases that want an item of the latter.
        content: (I, D) vectors of the trained items by which semantic IDs were made.
        identity: of what was trained on.
    """

    def __init__(self, settings: ColdSettings, data: ColdData, folder: Path, say: Callable[[str], None]) -> None:
        self.settings, self.data, self.folder, self.say = settings, data, folder, say
        self.identity = data_fingerprint(data.data)
        self._train = TrainSettings.parse(settings.train)
        self.measured = self._part("test", data.held.measured, settings.cases)
        every = self._part("valid", data.held.choice, None)
        self.wanted = float(every.cases.new_target.mean())
        self.choice = replace(every, cases=every.cases.some(settings.choice_cases))
        artefact = Artefact.load(data.work / "semantic_ids")
        self.content = artefact.source.embed(data.data.text, data.data.collaborative)  # (I, D)

    def run(self) -> tuple[list[Figure], list[dict[str, Any]]]:
        """The figures, and per seed what was chosen."""
        found: dict[str, list[Lists]] = {}
        chosen: list[dict[str, Any]] = []
        minutes, figures = [], list[Figure]()
        for seed in self.settings.seeds:
            run = self.folder / "runs" / sha256_parts([self.identity, self._train.identity(), str(seed)])[:16]
            minutes.append(train(self.data.data, self._train, run, seed=seed)["cpu_seconds"] / 60)
            self.say(f"trained, seed {seed}: {minutes[-1]:.1f} CPU minutes")
            one = Seed(self, Writer(run, self.data.data, self._train), run.name)
            chosen.append(one.choose())
            for source, lists in one.answers(chosen[-1]).items():
                found.setdefault(source, []).append(lists)
            figures = figures or changed_scores(
                STEM, one.writer, self.measured.later, self.measured.cases,
                limit=self.settings.score_cases, remove=self.settings.remove,
            )  # fmt: skip
        return [*self._figures(found), *figures, *self._counts(minutes)], chosen

    def _figures(self, found: dict[str, list[Lists]]) -> list[Figure]:
        cases = self.measured.cases
        groups = {"": cases.new_target, "history.": cases.new_history, "all.": np.ones(len(cases.targets), dtype=bool)}
        figures = []
        for source, lists in found.items():
            figures += source_figures(
                f"{STEM}.{source}", lists, cases.targets, groups, cases.trained,
                replicates=self.settings.replicates, seed=self.settings.holdout_seed,
            )  # fmt: skip
            own = [figure for figure in figures if figure.name.startswith(f"{STEM}.{source}.")]
            self.say(", ".join(f"{figure.name} {figure.value:.4f}" for figure in own))
        return figures

    def _counts(self, minutes: Sequence[float]) -> list[Figure]:
        cases, later = self.measured.cases, self.measured.later
        known = {tuple(code[:-1]) for code in self.data.data.codes.tolist()}
        placed = np.mean([tuple(code[:-1]) in known for code in later.codes.tolist()])
        wanted = cases.new_target
        return [
            Figure(f"{STEM}.items", len(later.rows), "items", note="added after training"),
            Figure(f"{STEM}.true_share", float(wanted.mean()), "share", n=len(wanted), note="of test events"),
            Figure(f"{STEM}.known_prefix", float(placed), "share", n=len(later.rows), note="all levels but the last"),
            Figure(f"{STEM}.training.cpu_minutes", float(np.mean(minutes)), "minutes", note="per seed"),
        ]

    def _part(self, part: str, rows: npt.NDArray[np.int64], limit: int | None) -> Part:
        data = self.data
        later = make_later(data, rows)
        trained = len(data.data.codes)
        index = live_index(data.full, data.data, rows)
        cases = cases_of(data.full, part, index, trained=trained).some(limit)
        return Part(later, cases, text_codes(data.work, later.text))


class Seed:
    """One trained model.

    Args:
        of: the measurement.
        writer: the model.
        name: of its run.
    """

    def __init__(self, of: Measurement, writer: Writer, name: str) -> None:
        self._of, self.writer, self._name = of, writer, name

    def choose(self) -> dict[str, Any]:
        """Prior, decays, discount and share, by the validation cases and the other held-out items.

        Prior and discount are those under which later items are shown most nearly as often as they are wanted, in the
        first 10 and in the first 50 places, whichever is further off; the decays and the share of retrieval are those
        with the highest Recall@50 over all cases.
        """
        settings, part = self._of.settings, self._of.choice
        value: dict[str, Any] = {}
        for source in ("retrieval", "content_only"):
            value[f"{source}_decay"] = self._best(
                f"{source}: Recall@50 by decay",
                settings.decays,
                partial(self._near, source, part),
            )
        decay = value["retrieval_decay"]
        value["discount"] = self._fairest(
            "retrieval: exposure by discount", settings.discounts, lambda it: self._near("retrieval", part, decay, it)
        )
        prior = self._fairest("nezha: exposure by prior", settings.priors, lambda it: self._written("nezha", part, it))
        value["prior"] = prior.model_dump()
        first, second = self._written("nezha", part, prior), self._near("retrieval", part, decay, value["discount"])
        value["share"] = self._best(
            "both: Recall@50 by share of retrieval", settings.shares, lambda share: merge(first, second, share)
        )
        return value

    def _best(self, what: str, grid: Sequence[float], lists: Callable[[float], Lists]) -> float:
        cases = self._of.choice.cases
        recalls = [float(hits(lists(value), cases.targets, 50).mean()) for value in grid]
        chosen = grid[int(np.argmax(recalls))]
        self._of.say(f"{what}: {np.round(recalls, 4).tolist()}; chosen {chosen}")
        return chosen

    def _fairest(self, what: str, grid: Sequence[Choice], lists: Callable[[Choice], Lists]) -> Choice:
        """The choice under which later items are shown most nearly as often as all validation cases want them."""
        trained, wanted = self._of.choice.cases.trained, self._of.wanted
        ratios = [exposures(lists(value), trained, wanted) for value in grid]
        chosen = grid[int(np.argmin([unfairness(found) for found in ratios]))]
        self._of.say(f"{what}: {np.round(ratios, 2).tolist()}; chosen {chosen}")
        return chosen

    def answers(self, chosen: dict[str, Any]) -> dict[str, Lists]:
        """The lists (N, k) of every source to the test cases."""
        part, prior = self._of.measured, Prior.model_validate(chosen["prior"])
        nezha = self._written("nezha", part, prior)
        retrieval = self._near("retrieval", part, chosen["retrieval_decay"], chosen["discount"])
        return {
            "nezha": nezha,
            "retrieval": retrieval,
            "both": merge(nezha, retrieval, chosen["share"]),
            "content_only": self._near("content_only", part, chosen["content_only_decay"]),
            "no_cold_handling": self._written("no_cold_handling", part, Prior()),
            "retrieval_plain": self._near("retrieval", part, chosen["retrieval_decay"]),
            "nezha_even": self._written("nezha", part, Prior()),
            "nezha_text_ids": self._written("nezha_text_ids", part, prior),
            "nezha_no_history": self._written("nezha_no_history", part, prior),
        }

    def _written(self, source: str, part: Part, prior: Prior) -> Lists:
        """What the model lists.

        `no_cold_handling` is the model as it was frozen, `nezha_no_history` does not read later items in histories, and
        `nezha_text_ids` has semantic IDs by text alone.
        """
        settings = self._of.settings

        def make() -> Lists:
            later, cases = part.later, part.cases
            if source == "nezha_text_ids":
                later = replace(later, codes=part.text_only)
            decoder = self.writer.decoder(later)
            known = cases.without_new()
            if source == "no_cold_handling":
                return written(decoder, None, known, known, k=settings.answer, beam=settings.beam)
            _, segments = self.writer.live(later.codes, prior.cold())
            read = known if source == "nezha_no_history" else cases.histories
            return written(decoder, segments, read, cases.histories, k=settings.answer, beam=settings.beam)

        return self._kept(source, part, [self._name, settings.beam, prior.model_dump()], make)

    def _near(self, source: str, part: Part, decay: float, discount: float = 0.0) -> Lists:
        """What lies nearest, by text alone or by what semantic IDs are made of."""

        def make() -> Lists:
            data = self._of.data.data
            if source == "content_only":
                nearest = Nearest(data.text, part.later.text)
            else:
                nearest = Nearest(self._of.content, part.later.content)
            return nearest.lists(part.cases.histories, k=self._of.settings.answer, decay=decay, discount=discount)

        return self._kept(source, part, [decay, discount], make)

    def _kept(self, source: str, part: Part, about: Sequence[Any], make: Callable[[], Lists]) -> Lists:
        """Read the lists that were made of the same items, cases and settings, or make and keep them."""
        arrays = [part.later.rows, part.later.codes, part.later.text, part.cases.targets, *part.cases.histories]
        settings = [self._of.identity, source, str(self._of.settings.answer), json.dumps(list(about), sort_keys=True)]
        key = sha256_parts([*settings, *(np.ascontiguousarray(array).tobytes() for array in arrays)])[:24]
        path = self._of.folder / "lists" / f"{source}-{key}.npy"
        if not path.exists():
            write_bytes_atomically(path, _npy(make()))
        return np.asarray(np.load(path, allow_pickle=False))


def _npy(array: Lists) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
