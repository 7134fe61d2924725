"""The parts of `windfire bench decoding`, each a module that is imported when it is asked for.

A part has `measure(request) -> Report` and `TABLES`, builders of tables by the ending of their name: the mark
`table:decoding-PART` of a page stands for the builder named '', `table:decoding-PART-KIND` for KIND. Its figures are
kept in docs/figures/decoding_PART.json; those of `latency`, the default, in docs/figures/decoding.json.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast

from recsys.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from benchmarks.figures import Figure, Report
    from benchmarks.table import Table

DEFAULT: Final = "latency"
PARTS: Final[dict[str, str]] = {
    DEFAULT: "benchmarks.decoding_parts.latency",
    "peers": "benchmarks.decoding_parts.peers",
    "speculative": "benchmarks.decoding_parts.speculative",
    "crossover": "benchmarks.decoding_parts.crossover",
    "verifier": "benchmarks.decoding_parts.verifier",
}


class Request(NamedTuple):
    """What the command line asks of a part.

    Attributes:
        quick: cut down to under two minutes.
        config: YAML in place of the part's own; None = its own.
        work: folder of what is kept between calls: prepared data, trained weights, finished sizes.
        command: the command line that repeats this, for the report.
        say: told in one line what was done.
    """

    quick: bool
    config: Path | None
    work: Path
    command: str
    say: Callable[[str], None]


class Part(Protocol):
    """The module of a part."""

    TABLES: Mapping[str, Callable[[dict[str, Figure]], Table]]

    def measure(self, request: Request) -> Report:
        """Measure and report.

        Raises:
            DataError: what the part needs is not there; the others can still run.
        """


def load(name: str) -> Part:
    """The module of a part.

    Raises:
        ConfigError: no part has this name.
    """
    if name not in PARTS:
        raise ConfigError("no such part", field="part", value=name, remedy=f"one of {', '.join(PARTS)}")
    module: Any = import_module(PARTS[name])
    return cast("Part", module)


def figures_file(name: str, stem: str = "decoding") -> str:
    """The file of a part's figures beside those of the others."""
    return f"{stem}.json" if name == DEFAULT else f"{stem}_{name}.json"
