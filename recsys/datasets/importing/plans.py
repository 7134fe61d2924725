"""Which source columns become which fields, and the rows that do not make it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.datasets.importing.chunks import Chunk, Rejection
from recsys.datasets.importing.values import BadValueError, Converter, attribute
from recsys.errors import InputError
from recsys.records import ITEMS, RejectReason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from recsys.datasets.importing.chunks import RowFile

LINE: Final = "line"
_ATTRIBUTES: Final = ITEMS.field("attributes").type


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a table.

    Attributes:
        name: the field in the table contract.
        converter: how its values are made.
        column: the source column; None where the field is constant.
        default: the value of a row that has none; a constant where there is no column.
        required: a row without a value is rejected.
    """

    name: str
    converter: Converter
    column: str | None = None
    default: Any = None
    required: bool = False


@dataclass(frozen=True, slots=True)
class TablePlan:
    """How rows of a source become rows of a table.

    Attributes:
        schema: the table contract.
        fields: the fields that the source says something about; all others are null.
        attributes: source columns that are kept in `attributes` under their names.
    """

    schema: pa.Schema
    fields: tuple[Field, ...]
    attributes: tuple[str, ...] = ()

    @property
    def wanted(self) -> list[str]:
        """The source columns that are read."""
        named = [field.column for field in self.fields if field.column is not None]
        return list(dict.fromkeys([*named, *self.attributes]))

    def has(self, name: str) -> bool:
        """Whether the source says something about a field."""
        return any(field.name == name for field in self.fields)

    def check(self, files: Iterable[RowFile]) -> None:
        """Check that every file has the columns.

        Raises:
            InputError: a column is missing or stands twice; names the columns there are.
        """
        required = {field.column for field in self.fields if field.required}
        for file in files:
            there = file.columns()
            for name in self.wanted if there else ():  # an empty file is no fault
                if there.count(name) == 1 or (file.open_schema and name not in required):
                    continue
                what = "is not there" if name not in there else "stands there more than once"
                raise InputError(
                    f"a column of {file.name} {what}; its columns are: {', '.join(there) or 'none'}",
                    field="column",
                    value=name,
                    remedy="rename the column, or say in a mapping file which column holds the field",
                )

    def apply(self, chunk: Chunk) -> tuple[pa.Table, list[Rejection]]:
        """Convert a chunk.

        Returns:
            The good rows (every field of the schema that is not the import's own business, and `line`), and the
            rejected ones, those of the chunk included.
        """
        bad: dict[int, BadValueError] = {}
        arrays: dict[str, pa.Array] = {LINE: pa.array(chunk.lines, pa.int64())}
        for field in self.fields:
            arrays[field.name] = _field_values(field, chunk, bad)
        if self.attributes:
            arrays["attributes"] = _attribute_maps(self.attributes, chunk, bad)
        for field in self.schema:
            if field.name not in arrays and field.name != "seq":
                arrays[field.name] = pa.nulls(len(chunk.lines), field.type)
        table = pa.table(arrays)
        rejected = [
            Rejection(int(chunk.lines[row]), error.reason, str(error), chunk.raw(row))
            for row, error in sorted(bad.items())
        ]
        if bad:
            keep = np.ones(len(chunk.lines), dtype=bool)
            keep[list(bad)] = False
            table = table.filter(pa.array(keep))
        return table, [*chunk.rejected, *rejected]


class _NamedError(BadValueError):
    """A bad value with the name of its column."""

    def __init__(self, message: str, reason: RejectReason) -> None:
        ValueError.__init__(self, message)
        self.reason = reason


def _field_values(field: Field, chunk: Chunk, bad: dict[int, BadValueError]) -> pa.Array:
    if field.column is None:
        return pa.repeat(pa.scalar(field.default, field.converter.type), len(chunk.lines))
    array, errors = field.converter.convert(chunk.columns[field.column])
    _note(field.column, errors, bad)
    if field.default is not None and array.null_count:
        array = pc.fill_null(array, field.default)
    if field.required and array.null_count:
        for row in np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False)).tolist():
            bad.setdefault(row, _NamedError(f"{field.column}: no value", RejectReason.MISSING_FIELD))
    return array


def _note(column: str, errors: dict[int, BadValueError], bad: dict[int, BadValueError]) -> None:
    for row, error in errors.items():
        bad.setdefault(row, _NamedError(f"{column}: {error}", error.reason))


def _attribute_maps(names: tuple[str, ...], chunk: Chunk, bad: dict[int, BadValueError]) -> pa.Array:
    """Per row the named columns that have a value."""
    rows, width = len(chunk.lines), len(names)
    stacked = []
    for name in names:
        array, errors = attribute().convert(chunk.columns[name])
        _note(name, errors, bad)
        stacked.append(array)
    by_row = pa.array(np.arange(rows * width).reshape(width, rows).T.ravel())
    values = pa.concat_arrays(stacked).take(by_row)
    keys = pa.array(names).take(pa.array(np.tile(np.arange(width), rows)))
    present = values.is_valid()
    counts = present.to_numpy(zero_copy_only=False).reshape(rows, width).sum(axis=1)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.MapArray.from_arrays(offsets, keys.filter(present), values.filter(present), type=_ATTRIBUTES)
