"""The parts of `windfire bench decoding`: each measures by settings of its own and gives one report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from recsys.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from benchmarks.figures import Report

    Part = Callable[[Path | None, bool, str, Callable[[str], None]], Report]

DEFAULT: Final = "latency"


def _latency(config: Path | None, quick: bool, command: str, say: Callable[[str], None]) -> Report:
    from benchmarks.decoding import bench
    from benchmarks.decoding_settings import CONFIG, DecodingSettings

    return bench(DecodingSettings.load(config or CONFIG, quick=quick), command, say=say)


def _verifier(config: Path | None, quick: bool, command: str, say: Callable[[str], None]) -> Report:
    from benchmarks.decoding_verifier import bench
    from benchmarks.decoding_verifier_settings import CONFIG, VerifierSettings

    return bench(VerifierSettings.load(config or CONFIG, quick=quick), command, say=say)


PARTS: Final[dict[str, Part]] = {DEFAULT: _latency, "verifier": _verifier}


def chosen(names: Sequence[str], config: Path | None) -> list[str]:
    """The parts to measure, in the order they were named; none named means the default one.

    Raises:
        ConfigError: there is no such part, or one file of settings is given for several.
    """
    wanted = list(dict.fromkeys(names)) or [DEFAULT]
    for name in wanted:
        if name not in PARTS:
            raise ConfigError("there is no such part", field="part", value=name, remedy=f"one of {', '.join(PARTS)}")
    if config is not None and len(wanted) > 1:
        raise ConfigError(
            "every part has settings of its own", field="config", value=str(config), remedy="name one part with it"
        )
    return wanted


def target(json: Path, part: str) -> Path:
    """Where a part's figures go: the default's to the file itself, another's to NAME_PART.json beside it."""
    return json if part == DEFAULT else json.with_name(f"{json.stem}_{part}{json.suffix}")
