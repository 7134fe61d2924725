"""The mapping file: which column of one's own log is which field, and how its values are written."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
import pyarrow as pa

from recsys.datasets.importing.chunks import SAMPLE
from recsys.datasets.importing.plans import Field, TablePlan
from recsys.datasets.importing.times import guess_form, time_converter
from recsys.datasets.importing.values import Converter, action, integer, money, string_list, string_map, text
from recsys.errors import InputError
from recsys.records import EVENTS, ITEMS, USERS, Action

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from recsys.datasets.importing.chunks import RowFile

SCHEMAS: Final = {"events": EVENTS, "items": ITEMS, "users": USERS}
_REQUIRED: Final = {
    "events": ("user_id", "item_id", "time", "action"),
    "items": ("item_id",),
    "users": ("user_id",),
}
_TIMES: Final = {"time", "created_at", "available_from", "available_until"}
_MONEY: Final = {"value_micros", "price_micros"}
_OWN: Final = {"seq"}  # made by the import
_SAMPLE_ROWS: Final = 100
_MICROS: Final = {"major": 1_000_000, "minor": 10_000, "micros": 1}
# other spellings of the fields, in lower case without _, - and blanks
_ALIASES: Final[dict[str, set[str]]] = {
    "user_id": {"userid", "user", "uid"},
    "item_id": {"itemid", "item", "productid", "product"},
    "event_id": {"eventid"},
    "time": {"time", "timestamp", "ts", "datetime", "eventtime"},
    "action": {"action", "event", "eventtype"},
    "value_micros": {"valuemicros", "value"},
    "price_micros": {"pricemicros", "price"},
    "title": {"title", "name"},
    "category_path": {"categorypath", "category", "categories"},
    "text": {"text", "description"},
}


class TableMapping(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a mapping file says about one table; everything it does not say is found by the obvious names.

    Attributes:
        path: the table's file or folder, relative to the mapping file (items and users only).
        columns: field to source column; null keeps a field from being filled.
        constants: field to the value of rows that have none (of all rows where no column is named).
        attributes: source columns kept in `attributes`.
        actions: the log's words to ours (`view: click`).
        time_format: s, ms, us, iso8601 or a strptime format; guessed from the first value where absent.
        money_unit: major (19.99), minor (1999) or micros; micros for columns whose name ends in it, else major.
        list_separator: between the parts of `category_path`.
        delimiter: between the fields of a text file; a tab for .tsv, else a comma.
        quoted: whether `"` around a field of a text file is not part of it.
    """

    path: str | None = None
    columns: dict[str, str | None] = {}
    constants: dict[str, str | int] = {}
    attributes: tuple[str, ...] = ()
    actions: dict[str, str] = {}
    time_format: str | None = None
    money_unit: Literal["major", "minor", "micros"] | None = None
    list_separator: str = "|"
    delimiter: Annotated[str, msgspec.Meta(min_length=1, max_length=1)] | None = None
    quoted: bool = True


class Mapping(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mapping file."""

    events: TableMapping = TableMapping()
    items: TableMapping = TableMapping()
    users: TableMapping = TableMapping()


def load_mapping(path: Path) -> Mapping:
    """Read a mapping file in YAML or JSON.

    Raises:
        InputError: it is absent, or does not have the documented form.
    """
    import yaml

    try:
        value = yaml.safe_load(path.read_bytes())
        mapping = msgspec.convert({} if value is None else value, Mapping)
    except (OSError, yaml.YAMLError, msgspec.ValidationError) as error:
        raise InputError(
            f"the mapping file cannot be used: {error}",
            field="mapping",
            value=str(path),
            remedy="see docs/importing.md for the form of a mapping file",
        ) from error
    for table, schema in SCHEMAS.items():
        section: TableMapping = getattr(mapping, table)
        allowed = [name for name in schema.names if name not in _OWN]
        for name in [*section.columns, *section.constants]:
            if name not in allowed:
                raise InputError(
                    f"{table} has no field of this name",
                    field=f"{table}.columns",
                    value=name,
                    remedy=f"use {', '.join(allowed)}",
                )
    return mapping


def plan_table(table: str, mapping: TableMapping, files: Sequence[RowFile]) -> TablePlan:
    """Find out how the files' columns become the table's fields.

    Raises:
        InputError: a required column is missing, or two columns could be the same field.
    """
    first = next((file for file in files if file.columns()), None)
    if first is None:
        raise InputError(
            f"the {'log' if table == 'events' else table + ' file'} is empty or has no readable row",
            field="source",
            value=", ".join(file.name for file in files),
            remedy="check that this is the right file and that its name says its format",
        )
    columns = _match(table, mapping, first.columns())
    fields = []
    for field in SCHEMAS[table]:
        name, column = field.name, columns.get(field.name)
        default = mapping.constants.get(name, Action.CLICK.value if name == "action" and column is None else None)
        if column is None and default is None:
            if name in _REQUIRED[table] and name != "time":
                _missing(table, name, first)
            continue
        converter = _converter(name, field.type, column, mapping, files)
        if default is not None:
            default = _constant(table, name, converter, default)
        fields.append(Field(name, converter, column, default, required=name in _REQUIRED[table]))
    plan = TablePlan(SCHEMAS[table], tuple(fields), mapping.attributes)
    plan.check(files)
    return plan


def _match(table: str, mapping: TableMapping, there: list[str]) -> dict[str, str]:
    """Field to column: as the mapping says, else by name."""
    chosen = {name: column for name, column in mapping.columns.items() if column is not None}
    taken = {*chosen.values(), *mapping.attributes}
    for name in SCHEMAS[table].names:
        if name in mapping.columns or name in _OWN or (name == "attributes" and mapping.attributes):
            continue
        spellings = _ALIASES.get(name, set()) | {_plain(name)}
        found = [column for column in there if _plain(column) in spellings and column not in taken]
        if name in found:
            found = [name]
        if len(set(found)) > 1:
            raise InputError(
                f"more than one column could be {name}: {', '.join(found)}",
                field="column",
                value=name,
                remedy=f"say in a mapping file which one it is: {table}: {{columns: {{{name}: ...}}}}",
            )
        if found:
            chosen[name] = found[0]
    return chosen


def _plain(name: str) -> str:
    return re.sub(r"[_\-\s]", "", name).lower()


def _missing(table: str, name: str, file: RowFile) -> None:
    raise InputError(
        f"{file.name} has no column for {name}; its columns are: {', '.join(file.columns()) or 'none'}",
        field="column",
        value=name,
        remedy=f"rename the column, or name it in a mapping file: {table}: {{columns: {{{name}: YOUR_COLUMN}}}}",
    )


def _converter(
    name: str, kind: pa.DataType, column: str | None, mapping: TableMapping, files: Sequence[RowFile]
) -> Converter:
    if name in _TIMES:
        return time_converter(mapping.time_format or _guess(column, files))
    if name in _MONEY:
        named_micros = column is not None and _plain(column).endswith("micros")
        return money(_MICROS[mapping.money_unit or ("micros" if named_micros else "major")])
    if name == "action":
        return action(mapping.actions)
    if pa.types.is_integer(kind):
        return integer(kind)
    if pa.types.is_map(kind):
        return string_map()
    return string_list(mapping.list_separator) if pa.types.is_list(kind) else text()


def _guess(column: str | None, files: Sequence[RowFile]) -> str:
    if column is None:
        return "iso8601"
    for file in files:
        for chunk in file.chunks([column], SAMPLE):
            values = chunk.columns[column]
            return guess_form(values[:_SAMPLE_ROWS] if isinstance(values, list) else values[:_SAMPLE_ROWS].to_pylist())
    return "iso8601"


def _constant(table: str, name: str, converter: Converter, value: str | int) -> Any:
    array, bad = converter.convert([value])
    if bad:
        raise InputError(
            f"a constant cannot be used: {bad[0]}",
            field=f"{table}.constants.{name}",
            value=value,
            remedy="write it as the column would be written",
        )
    return array[0].as_py()
