"""`windfire bench rere-speed`: rollouts per second, and ReRe in one process against rollouts beside training.

Rollouts are the G most probable items behind a history. On one token-shaped model over a Hugging Face backbone they are
written by its draft head (the trainer's rollouts), by its own next-token distribution in our beam, whose hypotheses
share the history's keys and values, and by `generate` of the `transformers` library with a prefix function; the last
two do the same search. The compact run itself, which is what ReRe trains by default, stands beside them.
"""

from __future__ import annotations

import shutil
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import numpy as np
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field

from benchmarks.decoding_parts.hf_generate import HfGenerateDecoder
from benchmarks.decoding_parts.timing import middle, ratio, take_turns
from benchmarks.figures import Figure, Report, environment, now
from benchmarks.measure import run_measured
from benchmarks.settings_file import load_settings
from recsys.backends import choose_backbone
from recsys.bundle.loading import load_model
from recsys.datasets.prepared import PreparedData
from recsys.decoding.building import build_decoder
from recsys.decoding.eligibility import Eligibility
from recsys.errors import ConfigError
from recsys.models import CompactRecommender, ItemFeatures, RecommenderConfig, TokenRecommender
from recsys.storage import read_json
from training.recommender.warm_start import load_parent
from training.rere.candidates import Candidates
from training.rere.policy import Policy
from training.rere.rollouts import Plan, roll_out
from training.rere.samples import Samples
from training.rere.settings import RereSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from recsys.decoding.decoder import Decoder
    from training.rere.candidates import Requests

CONFIG: Final = Path(__file__).with_name("rere_speed.yaml")
SYNC: Final = "sync"
PEER: Final = "hf_generate"
_WHOLE: Final = Eligibility(None, None)

Positive = Annotated[int, Field(ge=1)]


class SpeedSettings(BaseModel):
    """The whole benchmark.

    Attributes:
        seed: of histories, the untrained weights and the order inside a round.
        group: rollouts per history.
        batch: histories per call.
        rounds: times every method is measured.
        slow_rounds: the same for `hf_generate`.
        threads: of torch while rollouts are timed.
        backbone: model type of the token-shaped model.
        seeds: of training.
        alphas: asynchronous ratios.
        train: settings of `training.rere.settings.RereSettings`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int
    group: Annotated[int, Field(ge=2)]
    batch: Positive
    rounds: Positive
    slow_rounds: Positive
    threads: Positive
    backbone: str
    seeds: Annotated[list[int], Field(min_length=1)]
    alphas: list[Annotated[int, Field(ge=0)]]
    train: dict[str, Any]

    @classmethod
    def load(cls, path: Path = CONFIG, *, quick: bool = False) -> SpeedSettings:
        """Read the YAML file; with `quick` its section of that name is laid over the rest.

        Raises:
            ConfigError: not YAML, or a field that is unknown or out of range, also of `train`.
        """
        settings = load_settings(cls, path, quick=quick)
        RereSettings.parse(settings.train)
        return settings


def bench(
    run: Path, data: Path, settings: SpeedSettings, work: Path, command: str, *, say: Callable[[str], None]
) -> Report:
    """Time rollouts, then whole trainings.

    Args:
        run: a finished run of `windfire train recommender`, of the compact shape.
        data: its work directory.
        settings: sizes.
        work: for the runs made here; what is there of earlier calls goes.
        command: the command line, for the report.
        say: takes a line about each stage.

    Raises:
        ConfigError: the run has another shape.
        DataError: there is no run.
    """
    started = now()
    say("rollouts")
    figures = rollout_figures(run, PreparedData.load(data), settings)
    for figure in figures:
        if figure.name.endswith(".per_s"):
            say(f"{figure.name}: {figure.value:.0f}")
    figures += training_figures(run, data, settings, work, say=say)
    return Report(command, settings.model_dump(), settings.seeds, figures, started, environment())


class _Methods(NamedTuple):
    """Ways to roll out, each from requests to (n, G) items, -1 = none."""

    calls: dict[str, Callable[[Requests], npt.NDArray[np.int64]]]
    samples: Samples


def rollout_figures(run: Path, data: PreparedData, settings: SpeedSettings) -> list[Figure]:
    """Rollouts per second of every method, on the CPU, on the same histories in turns."""
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        methods = _methods(run, data, settings)
        batches = [
            methods.samples.requests(methods.samples.at(turn, settings.batch)) for turn in range(settings.rounds + 1)
        ]
        calls = {name: lambda turn, call=call: call(batches[turn]) for name, call in methods.calls.items()}
        rounds = {name: settings.slow_rounds if name == PEER else settings.rounds for name in calls}
        rng = np.random.default_rng(settings.seed)
        times = take_turns(calls, rounds, rng)
        same = _same(methods.calls["beam"](batches[0]), methods.calls[PEER](batches[0]))
    finally:
        torch.set_num_threads(before)
    asked = settings.batch * settings.group
    figures = []
    for name, values in times.items():
        stem = f"rere_speed.rollouts.{name}"
        figures.append(middle(f"{stem}.per_s", 1e3 * asked / values, "rollouts/s", rng, "median over rounds"))
        figures.append(middle(f"{stem}.ms", values, "ms", rng, f"median over rounds, {settings.batch} histories"))
        if name != PEER:
            figures.append(ratio(f"{stem}.over_{PEER}", times[PEER], values, rng))
    note = f"mean share of {PEER}'s items that the beam has, too"
    return [*figures, Figure("rere_speed.rollouts.beam.same_items", same, "share", n=settings.batch, note=note)]


def _methods(run: Path, data: PreparedData, settings: SpeedSettings) -> _Methods:
    load_parent(run, data)  # refuses a run of other data
    features = ItemFeatures(data.codes, data.text, data.collaborative, data.train_counts)
    compact = load_model(run / "model", features, data.codebook_sizes)
    if not isinstance(compact, CompactRecommender):
        raise ConfigError("needs a run of the compact shape", field="run", value=compact.config.shape, remedy="another")
    token = _token_model(compact.config, features, settings)
    policy, beam = Policy(token, data.codes, data.train_counts), settings.group
    own = build_decoder(token, policy.trie, name="beam", prior=data.train_counts)
    peer = HfGenerateDecoder(token, data.codes, prior=data.train_counts)
    calls = {
        "compact": _drafted(Policy(compact, data.codes, data.train_counts), settings),
        "head": _drafted(policy, settings),
        "beam": lambda requests: _decoded(own, requests, beam),
        PEER: lambda requests: _decoded(peer, requests, beam),
    }
    return _Methods(calls, Samples(data.sequences, seed=settings.seed, limit=compact.config.max_history))


def _token_model(config: RecommenderConfig, features: ItemFeatures, settings: SpeedSettings) -> TokenRecommender:
    """Of the run's sizes, with random weights: times hardly depend on them."""
    changes = {
        "shape": "token",
        "item_rows": False,
        "dropout": 0.0,
        "backbone": "huggingface",
        "backbone_config": {"model_type": settings.backbone},
    }
    torch.manual_seed(settings.seed)
    made = TokenRecommender(RecommenderConfig.from_dict(config.to_dict() | changes), features, choose_backbone)
    return made.eval()


def _drafted(policy: Policy, settings: SpeedSettings) -> Callable[[Requests], npt.NDArray[np.int64]]:
    """The trainer's rollouts."""
    candidates, plan = Candidates(policy.trie), Plan("beam", settings.group, settings.group)
    generator = torch.Generator()  # a beam draws nothing
    return lambda requests: roll_out(policy, candidates, requests, plan, generator).items


def _decoded(decoder: Decoder, requests: Requests, beam: int) -> npt.NDArray[np.int64]:
    ranked = decoder.decode(requests.histories, k=beam, beam=beam, eligibility=_WHOLE).ranked
    items = np.full((len(ranked), beam), -1, dtype=np.int64)
    for row, answer in enumerate(ranked):
        items[row, : len(answer.items)] = answer.items
    return items


def _same(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> float:
    return float(np.mean([np.isin(theirs, ours).mean() for ours, theirs in zip(one, other, strict=True)]))


def training_figures(
    run: Path, data: Path, settings: SpeedSettings, work: Path, *, say: Callable[[str], None]
) -> list[Figure]:
    """Wall-clock and validation NDCG@10 of one process with two threads and of two processes with one each.

    The arms of a seed run one after the other, in the opposite order for every other seed.
    """
    arms: dict[str, dict[str, Any]] = {SYNC: {"threads": 2}}
    arms |= {f"alpha{alpha}": {"threads": 1, "workers": 1, "alpha": alpha} for alpha in settings.alphas}
    found: defaultdict[str, list[float]] = defaultdict(list)
    for turn, seed in enumerate(settings.seeds):
        for arm in list(arms)[:: -1 if turn % 2 else 1]:
            measured = _train(run, data, settings.train | arms[arm], work / f"{arm}-{seed}", seed)
            say(f"{arm}, seed {seed}: {measured['seconds']:.1f} s, valid NDCG@10 {measured['ndcg@10']:.4f}")
            for name, value in measured.items():
                found[f"{arm}.{name}"].append(value)
    for arm in list(arms)[1:]:
        for prefix in ("", "loop_"):
            pairs = zip(found[f"{SYNC}.{prefix}seconds"], found[f"{arm}.{prefix}seconds"], strict=True)
            found[f"{arm}.{prefix}speedup"] = [ours / theirs for ours, theirs in pairs]
    return [_over_seeds(f"rere_speed.train.{name}", values) for name, values in found.items()]


def _train(run: Path, data: Path, settings: dict[str, Any], out: Path, seed: int) -> dict[str, float]:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    config = out / "rere.yaml"
    config.write_text(yaml.safe_dump(settings))
    paths = ["--data", str(data), "--run", str(run), "--out", str(out / "run"), "--config", str(config)]
    command = [sys.executable, "-m", "windfire", "train", "rere", *paths, "--seed", str(seed)]
    cost = run_measured(command, log=out / "log")
    manifest = read_json(out / "run" / "manifest.json")
    rows = [line.split(",") for line in (out / "run" / "metrics.csv").read_text().splitlines()]
    place = rows[0].index("valid.ndcg@10")
    return {
        "seconds": cost.seconds,
        "loop_seconds": manifest["seconds"],
        "cpu_seconds": cost.cpu_seconds,
        "ndcg@10": manifest["metrics"]["valid.ndcg@10"],
        "start_ndcg@10": float(rows[1][place]),
        "last_ndcg@10": float(rows[-1][place]),
    }


_UNITS: Final = {"speedup": "ratio", "loop_speedup": "ratio", "seconds": "s", "loop_seconds": "s", "cpu_seconds": "s"}


def _over_seeds(name: str, values: list[float]) -> Figure:
    unit = _UNITS.get(name.rpartition(".")[2], "share")
    return Figure(
        name, float(np.mean(values)), unit, min(values), max(values), len(values), "mean and range over seeds"
    )
