"""quality.yaml: which data sets, methods and seeds the quality benchmark measures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmarks.settings_file import merged
from recsys.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONFIG: Final = Path(__file__).with_name("quality.yaml")
Kind = Literal["popularity", "itemcf", "ease", "sasrec", "recommender", "continued", "rere"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatasetSettings(_Strict):
    """One log and how it is split.

    Attributes:
        importer: name for `windfire import`; absent for a log that is imported already.
        source: folder below the public data's folder.
        offline: settings of the offline jobs.
        seeds: instead of the benchmark's.
        methods: instead of the benchmark's default methods.
        base: the data set that this one is, but for some settings of the offline jobs; it is prepared first, and of
            its jobs only those are repeated that read another setting.
        since: the data set whose semantic IDs came before these.
        warm_start: whether the tokenizer begins with that of `since`.
    """

    importer: str = ""
    source: str = ""
    offline: dict[str, Any] = {}
    seeds: list[int] | None = None
    methods: list[str] | None = None
    base: str = ""
    since: str = ""
    warm_start: bool = False


class MethodSettings(_Strict):
    """One row of the table.

    Attributes:
        kind: which function of `benchmarks.quality_arms` answers.
        settings: what that function takes.
        seeds: instead of the benchmark's; a method without chance needs one only.
        title: how tables call it.
        against: methods whose difference is measured on the same users.
        change_of: the method that this one changes in one thing; it stands in the table of changes then.
    """

    kind: Kind
    settings: dict[str, Any] = {}
    seeds: list[int] | None = None
    title: str
    against: list[str] = []
    change_of: str = ""


class QualitySettings(_Strict):
    """The whole benchmark.

    Attributes:
        seeds: of every method that has chance in it.
        replicates: of the bootstrap.
        cases: at most so many test users, spread evenly; absent = all.
        datasets: by name.
        own: how an own log is prepared.
        methods: by name, in the order of the tables.
        default_methods: measured unless others are named.
    """

    seeds: Annotated[list[int], Field(min_length=1)]
    replicates: int = Field(1000, ge=1)
    cases: int | None = Field(None, ge=1)
    datasets: dict[str, DatasetSettings]
    own: DatasetSettings = DatasetSettings()
    methods: dict[str, MethodSettings]
    default_methods: list[str]

    @classmethod
    def load(cls, path: Path = CONFIG, *, quick: bool = False) -> QualitySettings:
        """Read the YAML file.

        A method with `like: OTHER`, and a data set with `base: OTHER`, starts from the other one and changes only what
        it names. With `quick`, the section of that name is laid over the rest.

        Raises:
            ConfigError: not YAML, or a field that is unknown or out of range.
        """
        try:
            value = yaml.safe_load(path.read_text())
            over = value.pop("quick", {})
            if quick:
                value = merged(value, over)
            value["methods"] = {name: _inherited(value["methods"], name) for name in value["methods"]}
            value["datasets"] = {name: _based(value["datasets"], name) for name in value["datasets"]}
            return cls.model_validate(value)
        except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
            raise ConfigError(f"not a benchmark's YAML file: {error!r}", field="config", value=str(path)) from error
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"benchmark setting: {first['msg']}", field=name, value=first.get("input")) from error

    def chosen_datasets(self, names: Sequence[str]) -> list[str]:
        """The named data sets, or all of them.

        Raises:
            ConfigError: an unknown name.
        """
        return _known(names, self.datasets, "dataset") or list(self.datasets)

    def chosen_methods(self, dataset: str, names: Sequence[str]) -> list[str]:
        """The named methods, or the data set's, in the order of the tables.

        Raises:
            ConfigError: an unknown name.
        """
        wanted = names or self.datasets[dataset].methods or self.default_methods
        known = _known(wanted, self.methods, "method")
        return [name for name in self.methods if name in known]

    def seeds_of(self, dataset: str, method: str) -> list[int]:
        """The seeds of one row."""
        return self.methods[method].seeds or self.datasets[dataset].seeds or self.seeds


def _inherited(methods: Mapping[str, Any], name: str) -> dict[str, Any]:
    own = dict(methods[name])
    parent = own.pop("like", None)
    if parent is None:
        return own
    if list(methods).index(parent) >= list(methods).index(name):
        raise ConfigError("a method may be like an earlier one only", field=f"methods.{name}.like", value=parent)
    return merged(_inherited(methods, parent), own)


def _based(datasets: Mapping[str, Any], name: str) -> dict[str, Any]:
    own = dict(datasets[name])
    names = list(datasets)
    for link in ("base", "since"):
        if link in own and names.index(own[link]) >= names.index(name):
            raise ConfigError("an earlier data set only", field=f"datasets.{name}.{link}", value=own[link])
    return merged(_based(datasets, own["base"]), own) if "base" in own else own


def _known(names: Sequence[str], known: Mapping[str, Any], what: str) -> list[str]:
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown {what}", field=what, value=name, remedy=f"one of {', '.join(known)}")
    return list(names)
