"""`windfire bench serving`: what the service holds under load, under faults, and around its model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.figures import Figure, Report, environment, now
from benchmarks.serving_parts.bundles import publish_synthetic
from recsys.bundle import Registry
from recsys.errors import ConfigError
from recsys.storage import read_json, sha256_parts, write_json_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.serving_settings import BundleShape, ServingSettings

PARTS: Final = ("knee", "overhead", "swap", "faults", "checker", "memory", "soak")
_USUAL: Final = ("knee", "overhead", "swap", "faults", "checker", "memory")  # soak is asked for by name
_SECTIONS: Final = (*PARTS,)


@dataclass(frozen=True, slots=True)
class Arm:
    """What one finished arm left.

    Attributes:
        figures: of it.
        values: further numbers that other arms or the report need.
        refused: name of a figure to the reason why there is none.
        warnings: what makes figures doubtful.
    """

    figures: list[Figure]
    values: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass
class Bench:
    """One call of the benchmark.

    Args:
        settings: what is measured.
        work: folder of what is kept: synthetic bundles and finished arms.
        say: told in one line what is done.
        given: a registry whose current bundle is measured; None: a synthetic one.
        data: work directory whose users' histories are read; None: histories are drawn.

    Attributes:
        refused: name of a figure to the reason why there is none.
        warnings: what makes figures doubtful.
    """

    settings: ServingSettings
    work: Path
    say: Callable[[str], None]
    given: Path | None = None
    data: Path | None = None
    refused: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def registry(self) -> Registry:
        """Of the measured bundle."""
        return Registry(self.given) if self.given is not None else self.synthetic(self.settings.bundle)

    def synthetic(self, shape: BundleShape, *, owns: Sequence[str] = ("",)) -> Registry:
        """Synthetic bundles of a shape, published once."""
        mark = _mark([shape.model_dump(), self.settings.seed, list(owns)])
        root = self.work / "bundles" / f"{shape.items}-{mark}"
        root.parent.mkdir(parents=True, exist_ok=True)
        self.say(f"bundle of {shape.items:,} items: {root}")
        return publish_synthetic(root, shape, self.settings.seed, owns=owns)

    def sized(self, items: int) -> BundleShape:
        """The settings' shape with another number of items."""
        return self.settings.bundle.model_copy(update={"items": items})

    def arm(self, part: str, name: str, measure: Callable[[], Arm], **further: Any) -> Arm:
        """Measure an arm, or read what an earlier call with the same settings has measured.

        Args:
            part: whose section of the settings matters.
            name: of the arm inside the part.
            measure: called where nothing is kept.
            further: what the arm depends on besides.
        """
        known = self.settings.model_dump(exclude=set(_SECTIONS) - {part})
        mark = _mark([known, str(self.given), str(self.data), further])
        path = self.work / "arms" / f"{part}-{name}-{mark}.json"
        if path.is_file():
            self.say(f"{part}, {name}: measured before")
            value = read_json(path)
            arm = Arm(**{**value, "figures": [Figure(**figure) for figure in value["figures"]]})
        else:
            self.say(f"{part}, {name}")
            arm = measure()
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomically(path, asdict(arm))
        self.refused |= arm.refused
        self.warnings += [warning for warning in arm.warnings if warning not in self.warnings]
        return arm


def bench(
    settings: ServingSettings, work: Path, command: str, *, parts: Sequence[str] = (), say: Callable[[str], None],
    registry: Path | None = None, data: Path | None = None,
) -> Report:  # fmt: skip
    """Measure parts, each arm by arm.

    Args:
        settings: what is measured.
        work: keeps bundles and finished arms.
        command: the command line that repeats this.
        parts: names; none: all but soak.
        say: told in one line what is done.
        registry: of a published bundle; None: a synthetic one. Swap, checker and memory always take synthetic ones.
        data: work directory of its users; None: users are drawn.

    Raises:
        ConfigError: no part has this name.
        UnavailableError: a process does not come up.
    """
    for name in parts:
        if name not in PARTS:
            raise ConfigError("no such part", field="part", value=name, remedy=f"one of {', '.join(PARTS)}")
    started, call = now(), Bench(settings, work.resolve(), say, registry and registry.resolve(), data)
    figures: list[Figure] = []
    for name in parts or _USUAL:
        measure: Callable[[Bench], list[Figure]] = import_module(f"benchmarks.serving_parts.{name}").measure
        figures += measure(call)
    told: dict[str, Any] = {"refused": call.refused, "warnings": call.warnings}
    bundle = {"bundle_measured": "synthetic" if registry is None else str(Registry(registry).current())}
    return Report(command, settings.model_dump() | told | bundle, [settings.seed], figures, started, environment())


def kept(report: Report, earlier: Report) -> Report:
    """With the figures of an earlier run whose scenarios this one did not measure."""
    measured = {scenario(figure.name) for figure in report.figures}
    others = [figure for figure in earlier.figures if scenario(figure.name) not in measured]
    return report.over(replace(earlier, figures=others))


def scenario(name: str) -> str:
    """What a figure is of: `serving.load50`, of a fault `serving.fault.redis_killed`."""
    parts = name.split(".")
    return ".".join(parts[: 3 if parts[1] in ("fault", "memory") else 2])


def _mark(value: Mapping[str, Any] | list[Any]) -> str:
    return sha256_parts([json.dumps(value, sort_keys=True, default=str)])[:12]
