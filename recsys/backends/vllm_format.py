"""What the exporter writes, the vLLM plug-in reads and both sides of its HTTP interface say to each other.

Here and in the plug-in nothing but NumPy is needed: the plug-in lives in vLLM's environment, not in ours.

An exported model reads token ids. Its vocabulary, in this order: the start; the codes of levels 1..L-1; the last
tokens, each the last code of an item with all that the model knows of the item besides (ID, text, collaboration) summed
into one row; the placeholders SP_1..SP_L. A prompt is `start, L tokens per item of the history, placeholders`.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from recsys.errors import DataError, InputError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    Ints = npt.NDArray[np.integer]

FORMAT: Final = "windfire.vllm/1"
MANIFEST: Final = "windfire.json"
ARCHITECTURE: Final = "WindfireNezhaQwen3"
IO_PROCESSOR: Final = "windfire_nezha"
START: Final = 0
_HALF_ITEM: Final = 1 << 16  # float32 holds integers below 2^24: an item index travels as two halves
_MOST: Final = 2**31 - 1  # of k and beam: they become 32-bit numbers
_NO_ITEMS: Final = np.empty(0, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class ExportManifest:
    """`windfire.json` of an exported model.

    Attributes:
        export_id: names weights, tokenizer, catalogue and the order inside buckets; both sides compare it.
        model_version: of the bundle or run.
        tokenizer_version: of the bundle or run.
        bundle_version: None where a run was exported.
        items: I.
        last_rows: last tokens in the vocabulary.
        model: `recsys.models.RecommenderConfig` as a dictionary.
        format: `FORMAT`.
    """

    export_id: str
    model_version: str
    tokenizer_version: str
    bundle_version: str | None
    items: int
    last_rows: int
    model: dict[str, Any]
    format: str = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return asdict(self)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read an exported directory's manifest.

        Raises:
            DataError: no export there, or one of another format.
        """
        remedy = "make it with `windfire export-vllm`"
        path = directory / MANIFEST
        try:
            value = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise DataError(f"no exported model: {error}", field="path", value=str(path), remedy=remedy) from error
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise DataError(
                f"the export has another format than {FORMAT}", field="path", value=str(path), remedy=remedy
            )
        if set(value) != {one.name for one in fields(cls)}:
            raise DataError("the export's manifest has other fields", field="path", value=str(path), remedy=remedy)
        return cls(**value)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Token ids of an exported model.

    Attributes:
        sizes: codebook sizes T_1..T_L.
        last_rows: last tokens.
        placeholders: whether SP_1..SP_L exist.
    """

    sizes: tuple[int, ...]
    last_rows: int
    placeholders: bool

    @property
    def levels(self) -> int:
        """L."""
        return len(self.sizes)

    def first(self, level: int) -> int:
        """The first token of a level 0..L-1; of L, the first placeholder."""
        if level == self.levels:
            return self.first(level - 1) + self.last_rows
        return START + 1 + sum(self.sizes[:level])

    @property
    def size(self) -> int:
        """Number of tokens."""
        return self.first(self.levels) + (self.levels if self.placeholders else 0)

    @property
    def rows(self) -> int:
        """Hidden states that the head reads, the last ones of a prompt: L + 1, or 1 without placeholders."""
        return self.levels + 1 if self.placeholders else 1

    def longest(self, items: int) -> int:
        """Tokens of a prompt of that many items."""
        return self.levels * items + self.rows

    def prompt(self, codes: Ints, last: Ints) -> list[int]:
        """The token ids of a history.

        Args:
            codes: (n, L) of its items, oldest first.
            last: (n,) the last token of each, 0..last_rows-1.
        """
        first = np.array([self.first(level) for level in range(self.levels)])
        tokens = np.column_stack([codes[:, :-1], last]).astype(np.int64) + first  # (n, L)
        behind = range(self.first(self.levels), self.size)
        return [START, *tokens.ravel().tolist(), *behind]


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """What a request wants of the verifier and the beam.

    Attributes:
        k: items wanted.
        beam: prefixes kept per level.
        excluded: (m,) int32 item indices that may not be shown.
        shared: one bit per item, packed with the lowest bit first; None lets every item through.
    """

    k: int
    beam: int
    excluded: npt.NDArray[np.int32]
    shared: bytes | None

    def to_kwargs(self) -> dict[str, Any]:
        """For `PoolingParams.extra_kwargs`: numbers and bytes."""
        return {"k": self.k, "beam": self.beam, "excluded": self.excluded.tobytes(), "shared": self.shared}

    @classmethod
    def from_kwargs(cls, value: dict[str, Any] | None, *, items: int) -> Self:
        """What `to_kwargs` gave; without anything, the ten best by a beam of fifty.

        Raises:
            InputError: not of that form, or out of range.
        """
        given: dict[str, Any] = {"k": 10, "beam": 50, "excluded": b"", "shared": None} if value is None else value
        try:
            excluded = np.frombuffer(given["excluded"], dtype=np.int32)
            made = cls(given["k"], given["beam"], excluded, given["shared"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"not what the IO processor passes: {error!r}", field="extra_kwargs") from error
        made.check(items)
        return made

    def check(self, items: int) -> None:
        """Raise `InputError` unless every number is in range."""
        for field, value in (("k", self.k), ("beam", self.beam)):
            if not _is_integer(value) or not 1 <= value <= _MOST:
                raise InputError(f"{field} must be an integer, 1 to {_MOST}", field=field, value=value)
        _check_items("excluded", self.excluded, items)
        if self.shared is not None and len(self.shared) != -(-items // 8):
            raise InputError(f"one bit for each of {items} items", field="shared", value=len(self.shared))


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """The `data` of a request to `/pooling`.

    Attributes:
        export_id: the model that the indices belong to; None takes whatever answers.
        history: (n,) item indices, oldest first.
        wanted: the rest.
    """

    export_id: str | None
    history: npt.NDArray[np.int32]
    wanted: Wanted

    def to_json(self) -> dict[str, Any]:
        """The JSON form; `parse` inverts it."""
        wanted = self.wanted
        shared = None if wanted.shared is None else base64.b64encode(wanted.shared).decode()
        return {
            "export_id": self.export_id,
            "history": self.history.tolist(),
            "k": wanted.k,
            "beam": wanted.beam,
            "excluded": wanted.excluded.tolist(),
            "shared": shared,
        }

    @classmethod
    def parse(cls, data: object, *, items: int) -> Self:
        """Read the JSON form; `history` is needed, the rest has the defaults of `Wanted.from_kwargs`.

        Raises:
            InputError: an unknown or missing field, or one of another type or out of range.
        """
        if not isinstance(data, dict):
            raise InputError("must be an object", field="data", value=data)
        known: dict[str, Any] = {
            "export_id": None,
            "history": None,
            "k": 10,
            "beam": 50,
            "excluded": [],
            "shared": None,
        }
        for name in data:
            if name not in known:
                raise InputError(f"unknown field {name}", field="data", value=name, remedy=f"one of {sorted(known)}")
        value = known | data
        if value["export_id"] is not None and not isinstance(value["export_id"], str):
            raise InputError("must be a string", field="export_id", value=value["export_id"])
        history, excluded = (_items_of(name, value[name], items) for name in ("history", "excluded"))
        wanted = Wanted(value["k"], value["beam"], excluded, _bits_of(value["shared"]))
        wanted.check(items)
        return cls(value["export_id"], history, wanted)


def pack_shared(shared: npt.NDArray[np.bool_]) -> bytes:
    """(I,) bool -> one bit per item."""
    return np.packbits(shared, bitorder="little").tobytes()


def unpack_shared(packed: bytes, items: int) -> npt.NDArray[np.bool_]:
    """What `pack_shared` packed."""
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=items, bitorder="little").astype(np.bool_)


class Status:
    """How a request ended inside the pooler; the first number of an answer."""

    DONE: Final = 0
    TOO_FEW_ROWS: Final = 1
    NOT_FINITE: Final = 2
    BAD_REQUEST: Final = 3


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What the pooler returns for a request.

    As a tensor (m + 1, 3) of float32: a row (status, widened, 0), then a row (index // 65536, index % 65536, score) per
    item, best first. Indices below 2^40 and float32 scores come back exactly.

    Attributes:
        items: (m,) int32 item indices.
        scores: (m,) float32.
        widened: searches that were repeated with a wider beam.
        status: see `Status`.
    """

    items: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    widened: int = 0
    status: int = Status.DONE

    @classmethod
    def failed(cls, status: int) -> Self:
        """An answer without items."""
        return cls(_NO_ITEMS, np.empty(0, dtype=np.float32), 0, status)

    def encode(self) -> npt.NDArray[np.float32]:
        """(m + 1, 3) float32."""
        rows = np.empty((len(self.items) + 1, 3), dtype=np.float32)
        rows[0] = self.status, self.widened, 0
        rows[1:, 0], rows[1:, 1] = np.divmod(self.items, _HALF_ITEM)
        rows[1:, 2] = self.scores
        return rows

    @classmethod
    def decode(cls, rows: npt.NDArray[np.floating]) -> Self:
        """What `encode` gave."""
        items = (rows[1:, 0].astype(np.int64) * _HALF_ITEM + rows[1:, 1].astype(np.int64)).astype(np.int32)
        return cls(items, rows[1:, 2].astype(np.float32), int(rows[0, 1]), int(rows[0, 0]))


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _items_of(field: str, value: object, items: int) -> npt.NDArray[np.int32]:
    if not isinstance(value, list) or not all(map(_is_integer, value)):
        raise InputError("must be a list of item indices", field=field, value=value)
    found = np.array(value, dtype=object) if value else _NO_ITEMS  # a huge number must not overflow here
    _check_items(field, found, items)
    return found.astype(np.int32)


def _check_items(field: str, found: npt.NDArray[Any], items: int) -> None:
    if len(found) and not (found.min() >= 0 and found.max() < items):
        span = int(found.min()), int(found.max())
        raise InputError(f"item indices must lie in 0..{items - 1}", field=field, value=span)


def _bits_of(value: object) -> bytes | None:
    if value is None:
        return None
    try:
        if isinstance(value, str):
            return base64.b64decode(value, validate=True)
    except binascii.Error:
        pass
    raise InputError("must be the base64 form of one bit per item", field="shared", value=value)
