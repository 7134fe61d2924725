"""`windfire bench vllm`: NEZHA inside vLLM against vLLM's own beam search, over the same trained backbone."""

from __future__ import annotations

import http.client
import re
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import numpy as np
import orjson
import torch
from pydantic import BaseModel, ConfigDict, Field

from benchmarks.decoding_settings import Positive
from benchmarks.figures import Figure, Report, environment, now
from benchmarks.settings_file import load_settings
from benchmarks.vllm_models import Walks, export_language_model, train
from benchmarks.vllm_server import POOLING, require_environment, vllm_server
from recsys.backends.vllm_export import export_vllm
from recsys.backends.vllm_format import START, Question, Wanted
from recsys.backends.vllm_identity import Origin
from recsys.decoding.decoder import Ranked
from recsys.decoding.eligibility import Eligibility
from recsys.decoding.nezha import NezhaDecoder
from recsys.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from benchmarks.vllm_models import Trained
    from benchmarks.vllm_server import VllmServer

    Items = npt.NDArray[np.int32]
    Floats = npt.NDArray[np.float64]
    Ask = Callable[[Items, int], Any]

CONFIG: Final = Path(__file__).with_name("vllm.yaml")
_TIMEOUT: Final = 600.0  # seconds of one request
_DRAWS: Final = 1000  # of the bootstrap over rounds
_WORD: Final = re.compile(r"t(\d+)")


class VllmSettings(BaseModel):
    """The whole benchmark; see vllm.yaml.

    Attributes:
        seed: of catalogue, weights, walks and order.
        items: of the catalogue.
        codebooks: T_1..T_L.
        skew: per level the exponent of the code frequencies.
        d_model: hidden size.
        layers: of the backbone.
        heads: of the backbone.
        history: items of a request.
        widths: of the beams; as many items are asked for.
        rounds: requests per width.
        warm_up: requests per width before.
        steps: of training.
        windows: per step.
        jump: share of steps of a walk that go to any item.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int
    items: Positive
    codebooks: Annotated[list[Positive], Field(min_length=1)]
    skew: list[Annotated[float, Field(ge=0)]]
    d_model: Positive
    layers: Positive
    heads: Positive
    history: Positive
    widths: Annotated[list[Positive], Field(min_length=1)]
    rounds: Positive
    warm_up: Annotated[int, Field(ge=0)]
    steps: Annotated[int, Field(ge=2)]
    windows: Positive
    jump: Annotated[float, Field(ge=0, le=1)]

    @classmethod
    def load(cls, path: Path = CONFIG, *, quick: bool = False) -> VllmSettings:
        """Read the YAML file; with `quick` its section of that name is laid over the rest.

        Raises:
            ConfigError: not YAML, or a field that is unknown or out of range.
        """
        return load_settings(cls, path, quick=quick)


class Measured:
    """Answers and times of one method, per width in the order of the rounds.

    Attributes:
        answers: what the method gave.
        ms: milliseconds, seen by the client.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        self.answers: dict[int, list[Any]] = {width: [] for width in widths}
        self.ms: dict[int, list[float]] = {width: [] for width in widths}


def bench(settings: VllmSettings, command: str, folder: Path, *, say: Callable[[str], None]) -> Report:
    """Train, export twice, and ask the same histories of our own engine and of both servers, one after the other.

    Args:
        settings: of vllm.yaml.
        command: the command line that repeats this, for the report.
        folder: for models and logs.
        say: told in one line what was done.

    Raises:
        ConfigError: vLLM has no environment.
        UnavailableError: a server did not start or does not answer.
    """
    require_environment()
    started, machine = now(), environment()
    began = time.perf_counter()
    trained = train(settings)
    say(f"{settings.items:,} items; {settings.steps} steps in {time.perf_counter() - began:.0f} s")
    origin = Origin("benchmark", f"seed-{settings.seed}")
    export_vllm(trained.model, trained.features, origin, folder / "nezha")
    export_language_model(trained, folder / "language_model")
    rng = np.random.default_rng(settings.seed + 1)
    walks = Walks(trained.features.codes, settings.jump)
    histories = list(walks.draw(rng, settings.rounds + settings.warm_up, settings.history).astype(np.int32))
    runs = {"nezha": _measured(_own(trained), histories, settings)}
    say(f"own engine, ms: {_shown(runs['nezha'])}")
    with vllm_server(folder / "nezha", *POOLING, folder=folder) as server:
        server.wait_until_ready()
        with closing(_Client(server)) as client:
            machine["versions"]["vllm"] = client.get("/version")["version"]
            runs["vllm_nezha"] = _measured(_plugin(client), histories, settings)
    say(f"plug-in, ms: {_shown(runs['vllm_nezha'])}")
    logprobs = str(2 * max(settings.widths))
    with vllm_server(folder / "language_model", "--max-logprobs", logprobs, folder=folder) as server:
        server.wait_until_ready()
        with closing(_Client(server)) as client:
            runs["vllm_beam"] = _measured(_beam_search(client, trained), histories, settings)
    say(f"vLLM's beam, ms: {_shown(runs['vllm_beam'])}")
    figures = [figure for width in settings.widths for figure in figures_of(width, runs, trained, histories, settings)]
    return Report(command, settings.model_dump(), [settings.seed], figures, started, machine)


def _measured(ask: Ask, histories: Sequence[Items], settings: VllmSettings) -> Measured:
    """Every width for every history, the order of the widths drawn anew each round."""
    rng = np.random.default_rng(settings.seed + 2)
    measured = Measured(settings.widths)
    for turn, history in enumerate(histories):
        for width in rng.permutation(settings.widths).tolist():
            began = time.perf_counter_ns()
            answer = ask(history, width)
            passed = (time.perf_counter_ns() - began) / 1e6
            if turn >= settings.warm_up:
                measured.answers[width].append(answer)
                measured.ms[width].append(passed)
    return measured


def _own(trained: Trained) -> Ask:
    decoder = NezhaDecoder(trained.model, trained.trie, prior=trained.features.train_counts)
    threads = torch.get_num_threads()

    def ask(history: Items, width: int) -> Ranked:
        torch.set_num_threads(1)
        try:
            seen = Eligibility(None, [history])
            return decoder.decode([history], k=width, beam=width, eligibility=seen).ranked[0]
        finally:
            torch.set_num_threads(threads)

    return ask


class _Client:
    """Asks a server on one connection.

    Args:
        server: ready.
    """

    def __init__(self, server: VllmServer) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_TIMEOUT)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def post(self, path: str, value: dict[str, Any]) -> dict[str, Any]:
        """The answer to a JSON body.

        Raises:
            UnavailableError: it is not 200.
        """
        return self._ask("POST", path, orjson.dumps(value))

    def get(self, path: str) -> dict[str, Any]:
        """The answer to a GET.

        Raises:
            UnavailableError: it is not 200.
        """
        return self._ask("GET", path, None)

    def _ask(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        self._connection.request(method, path, body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        found = response.read()
        if response.status != http.HTTPStatus.OK:
            raise UnavailableError(f"vLLM answered {response.status}: {found[:500].decode(errors='replace')}")
        answer: dict[str, Any] = orjson.loads(found)
        return answer


def _plugin(client: _Client) -> Ask:
    """As many items as the beam is wide, without those of the history."""

    def ask(history: Items, width: int) -> Ranked:
        question = Question(None, history, Wanted(width, width, history, None))
        data = client.post("/pooling", {"data": question.to_json()})["data"]
        return Ranked(np.array(data["items"], np.int32), np.array(data["scores"], np.float32))

    return ask


def _beam_search(client: _Client, trained: Trained) -> Ask:
    """The token ids of each beam; a prompt is the start and every item's codes."""
    first = np.array(trained.first)

    def ask(history: Items, width: int) -> list[list[int]]:
        prompt = [START, *(trained.features.codes[history] + first).ravel().tolist()]
        value = {
            "prompt": prompt, "n": width, "use_beam_search": True, "max_tokens": len(first), "temperature": 0.0,
            "ignore_eos": True,
        }  # fmt: skip
        choices = client.post("/v1/completions", value)["choices"]
        return [[int(word) for word in _WORD.findall(choice["text"])] for choice in choices]

    return ask


def figures_of(
    width: int, runs: dict[str, Measured], trained: Trained, histories: Sequence[Items], settings: VllmSettings
) -> list[Figure]:
    """What one width has shown.

    Args:
        width: of the beam.
        runs: by method: `nezha` (own engine), `vllm_nezha`, `vllm_beam`.
        trained: what all ran.
        histories: warm-up first.
        settings: of the run.
    """
    rng = np.random.default_rng(settings.seed + 3)
    stem = f"decoding.vllm.beam{width}"
    times = {name: np.array(run.ms[width]) for name, run in runs.items()}
    figures = [
        _figure(f"{stem}.{name}.ms", "ms", np.median(values), _medians(values, rng), len(values), "median over rounds")
        for name, values in times.items()
    ]
    ratio = np.median(times["vllm_beam"]) / np.median(times["vllm_nezha"])
    draws = _medians(times["vllm_beam"], rng) / _medians(times["vllm_nezha"], rng)
    note = "ratio of the medians; the two servers ran one after the other"
    figures.append(_figure(f"{stem}.vllm_beam.over_vllm_nezha", "ratio", ratio, draws, len(draws), note))
    asked = histories[settings.warm_up :]
    existing = {tuple(row) for row in (trained.features.codes + np.array(trained.first)).tolist()}
    invalid = np.array(
        [np.mean([tuple(tokens) not in existing for tokens in beams]) for beams in runs["vllm_beam"].answers[width]]
    )
    means = rng.choice(invalid, size=(_DRAWS, len(invalid))).mean(axis=1)
    note = "unconstrained: share of beams that name no item of the catalogue"
    figures.append(_figure(f"{stem}.vllm_beam.invalid", "share", invalid.mean(), means, len(invalid), note))
    return figures + _agreement(stem, runs["vllm_nezha"].answers[width], runs["nezha"].answers[width], asked, trained)


def _agreement(
    stem: str, found: Sequence[Ranked], expected: Sequence[Ranked], asked: Sequence[Items], trained: Trained
) -> list[Figure]:
    """Of the plug-in with our own engine, and what it returned that may not be shown."""
    apart, same, wrong, total = 0.0, 0, 0, 0
    for answer, other, history in zip(found, expected, asked, strict=True):
        outside = (answer.items < 0) | (answer.items >= trained.trie.items) | np.isin(answer.items, history)
        wrong += int(outside.sum())
        total += len(answer.items)
        same += len(np.intersect1d(answer.items, other.items))
        shorter = min(len(answer.items), len(other.items))
        apart = max(apart, float(np.abs(answer.scores[:shorter] - other.scores[:shorter]).max(initial=0.0)))
    held = sum(len(other.items) for other in expected)
    return [
        Figure(
            f"{stem}.vllm_nezha.invalid", wrong / total, "share", n=total, note="outside the catalogue, or excluded"
        ),
        Figure(f"{stem}.vllm_nezha.same_items", same / held, "share", n=held, note="of our own engine's items"),
        Figure(f"{stem}.vllm_nezha.score_difference", apart, "nats", n=total, note="largest, by rank"),
    ]


def _medians(values: Floats, rng: np.random.Generator) -> Floats:
    """(_DRAWS,) medians of resampled rounds."""
    medians: Floats = np.median(rng.choice(values, size=(_DRAWS, len(values))), axis=1)
    return medians


def _figure(name: str, unit: str, value: np.floating, draws: Floats, count: int, note: str) -> Figure:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Figure(name, float(value), unit, float(low), float(high), count, note)


def _shown(measured: Measured) -> str:
    return ", ".join(f"{width}: {np.median(values):.1f}" for width, values in measured.ms.items())
