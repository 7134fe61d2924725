"""How an index is built and searched; config/retrieval.yaml explains each field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

import yaml
from annotated_types import Ge, Interval
from pydantic import BaseModel, ConfigDict, ValidationError

from recsys.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

KindSetting = Literal["auto", "flat", "hnsw", "ivf_pq"]
Kind = Literal["flat", "hnsw", "ivf_pq"]
VectorsName = Literal["given", "collaborative", "text"]
NAMES: Final[tuple[VectorsName, ...]] = ("given", "collaborative", "text")  # in the order of preference
Positive = Annotated[int, Ge(1)]
_QUANTISED = 40  # vectors below which there is nothing to fit codes to


class IndexSettings(BaseModel):
    """One index.

    Attributes:
        kind: `flat` (every vector, exact), `hnsw` (a graph), `ivf_pq` (lists of quantised residuals), or `auto`:
            flat up to `flat_most` vectors, then hnsw.
        flat_most: see `kind`.
        hnsw_links: neighbours per vector and layer of the graph; twice as many in the lowest.
        hnsw_build: width of the search that finds them.
        hnsw_search: width of a query's search.
        ivf_lists: number of lists; absent = 4 sqrt(vectors).
        ivf_probes: lists that a query looks into.
        pq_bytes: bytes per quantised vector; absent = an eighth of the dimension. The nearest smaller divisor of the
            dimension is taken.
        rescore: quantised candidates per wanted item whose exact score is computed.
        exact_rows: up to so many eligible vectors a query scores all of them.
        exact_share: so does one to which at most this share of the vectors is eligible.
        fresh_most: vectors added since the build that ask for a rebuild.
        threads: of building and searching; with more than one a graph is not the same twice.
        seed: of the lists and codebooks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: KindSetting = "auto"
    flat_most: Annotated[int, Ge(0)] = 20_000
    hnsw_links: Annotated[int, Interval(ge=2, le=512)] = 32
    hnsw_build: Positive = 200
    hnsw_search: Positive = 128
    ivf_lists: Positive | None = None
    ivf_probes: Positive = 32
    pq_bytes: Positive | None = None
    rescore: Positive = 4
    exact_rows: Annotated[int, Ge(0)] = 10_000
    exact_share: Annotated[float, Interval(ge=0, le=1)] = 0.03
    fresh_most: Positive = 10_000
    threads: Positive = 1
    seed: Annotated[int, Interval(ge=0, le=2**31 - 1)] = 1

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Check a mapping.

        Raises:
            ConfigError: an unknown field or one out of range; names it.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"]) or "settings"
            raise ConfigError(
                first["msg"], field=f"index.{name}", value=first.get("input"), remedy="see config/retrieval.yaml"
            ) from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a YAML file.

        Raises:
            ConfigError: not readable, not YAML, or a field that is unknown or out of range.
        """
        try:
            value = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"not a YAML file: {error}", field="config", value=str(path)) from error
        return cls.parse(value or {})

    def kind_for(self, vectors: int) -> Kind:
        """The kind of an index over so many vectors."""
        if self.kind == "auto":
            return "flat" if vectors <= self.flat_most else "hnsw"
        return "flat" if self.kind == "ivf_pq" and vectors < _QUANTISED else self.kind
