"""Settings of `windfire loadtest`: config/loadtest.yaml explains each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from loadtest.errors import SettingsError
from loadtest.running import Load
from loadtest.target import Target
from loadtest.workload import Workload

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Visitor = Literal["new_visitor", "returning_user", "heavy_scroller"]
Rate = Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)]


class SweepSettings(BaseModel):
    """Rates of the sweep, in requests per second.

    Attributes:
        start: tried first.
        lowest: below it nothing is tried.
        highest: above it nothing is tried.
        precision: width of the last bisection over the knee.
        seconds: window of one rate; long beside the deadline, or a queue that grows has no time to show.
        least: requests of one rate; at low rates the window is as long as they need.
        warmup: of each rate.
        pause: between two rates, so that what waits in the server ends.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: Rate = 50.0
    lowest: Rate = 1.0
    highest: Rate = 20_000.0
    precision: Annotated[float, Field(gt=0, le=1)] = 0.05
    seconds: Seconds = 10.0
    least: Annotated[int, Field(ge=300)] = 1000  # few give no 99th percentile
    warmup: Annotated[float, Field(ge=0, le=3600)] = 2.0
    pause: Annotated[float, Field(ge=0, le=3600)] = 2.0


def _usual_weights() -> dict[Visitor, int]:
    return {"new_visitor": 3, "returning_user": 5, "heavy_scroller": 2}


class JourneySettings(BaseModel):
    """Of `windfire loadtest journeys`.

    Attributes:
        weights: kind of visitor to its weight among the users.
        think: mean seconds between an answer and the next request, exponential.
        pages: that a heavy scroller looks at.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: dict[Visitor, Annotated[int, Field(ge=0)]] = Field(default_factory=_usual_weights)
    think: Annotated[float, Field(ge=0, le=3600)] = 1.0
    pages: Annotated[int, Field(ge=1, le=100)] = 5

    @field_validator("weights")
    @classmethod
    def _names_every_visitor(cls, weights: dict[Visitor, int]) -> dict[Visitor, int]:
        if set(weights) != set(get_args(Visitor)) or not any(weights.values()):
            raise ValueError(f"must name {', '.join(get_args(Visitor))}, and one must be above 0")
        return weights


class LoadSettings(BaseModel):
    """The whole file; times in seconds.

    Attributes:
        url: of the server.
        header_variables: header to the environment variable that holds its value, so that no secret stands in a file.
        rate: requests per second of `windfire loadtest run`.
        seconds: measured window.
        warmup: before it, not measured.
        deadline: of each request from its intended time, told in X-Deadline-Ms.
        timeout: from the intended time; then the client gives up.
        connections: at most.
        closed_users: of the closed loop beside it.
        seed: of arrivals and requests.
        sweep: of `windfire loadtest sweep`.
        workload: what is asked.
        journeys: of `windfire loadtest journeys`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = "http://127.0.0.1:8080"
    header_variables: dict[str, str] = Field(default_factory=dict)
    rate: Rate = 100.0
    seconds: Seconds = 60.0
    warmup: Annotated[float, Field(ge=0, le=3600)] = 5.0
    deadline: Seconds = 0.1
    timeout: Seconds = 10.0
    connections: Annotated[int, Field(ge=1, le=10_000)] = 64
    closed_users: Annotated[int, Field(ge=1, le=10_000)] = 16
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    sweep: SweepSettings = Field(default_factory=SweepSettings)
    workload: Workload = Field(default_factory=Workload)
    journeys: JourneySettings = Field(default_factory=JourneySettings)

    @classmethod
    def load(cls, path: Path | None = None, **given: Any) -> Self:
        """Defaults, under those of a YAML file, under those that are given and not None.

        Raises:
            SettingsError: no YAML mapping there, or a field that is unknown or out of range.
        """
        try:
            value = yaml.safe_load(path.read_text()) if path is not None else {}
            value = {**(value or {}), **{name: one for name, one in given.items() if one is not None}}
        except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError) as error:
            raise SettingsError(
                f"no settings: {error}", field="config", value=str(path), remedy="see config/loadtest.yaml"
            ) from error
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(str(part) for part in first["loc"])
            raise SettingsError(
                first["msg"], field=name, value=first.get("input"), remedy="see config/loadtest.yaml"
            ) from error

    def target(self) -> Target:
        """The server, with the headers from the environment.

        Raises:
            SettingsError: a variable is not set, or the URL is none.
        """
        absent = [name for name in self.header_variables.values() if name not in os.environ]
        if absent:
            raise SettingsError(
                "the variable is not set", field="header_variables", value=absent[0], remedy="export it first"
            )
        return Target.parse(self.url, {header: os.environ[name] for header, name in self.header_variables.items()})

    def one(self) -> Load:
        """The load of `windfire loadtest run`.

        Raises:
            SettingsError: the timeout is shorter than the deadline.
        """
        return self._load(self.rate, self.seconds, self.warmup)

    def step(self, rate: float) -> Load:
        """The load of one rate of the sweep.

        Raises:
            SettingsError: the timeout is shorter than the deadline.
        """
        return self._load(rate, max(self.sweep.seconds, self.sweep.least / rate), self.sweep.warmup)

    def _load(self, rate: float, seconds: float, warmup: float) -> Load:
        return Load(
            rate=rate, seconds=seconds, warmup=warmup, deadline=self.deadline, timeout=self.timeout,
            connections=self.connections, seed=self.seed,
        )  # fmt: skip
