"""Views: named groups of an entity's features, declared in Python with their types, age limit, version and owner."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from datetime import timedelta
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from feature_store.encoding import Codec
from feature_store.entries import ORDER_FIELDS, EntryCodec
from feature_store.fields import LISTS, NAME, VECTORS, Field
from recsys.errors import ConfigError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

RESERVED: Final = (*ORDER_FIELDS, "entity_id", "event_time", "created_at", "deleted")
_MICROSECOND: Final = timedelta(microseconds=1)
_HASHED: Final = b"sha256-"
_MAX_ENTITY: Final = 360  # LMDB takes keys of 511 bytes; prefix, view, version and `:tail` need up to 90
_MAX_VERSION: Final = 10**9


@dataclass(frozen=True)
class View:
    """One group of features of one kind of entity, read and written as a whole.

    Attributes:
        name: lower-case letters, digits and underscores.
        entity: the kind of entity ("user", "item").
        fields: in the order they are packed.
        version: part of the key; another field, order or type needs another version.
        owner: whom to ask.
        ttl: age of the event time from which on a value is STALE; None: never.
        keep: age from which on a value or a tombstone is gone, and a late write of that age is ignored; twice the ttl
            unless given; None without a ttl: for ever.
        history: newest entries kept, in the order (time, seq, event_id); None: the view holds one value, no history.
        description: one line.

    Raises:
        ConfigError: names the attribute that does not fit.
    """

    name: str
    entity: str
    fields: tuple[Field, ...]
    version: int
    owner: str
    ttl: timedelta | None = None
    keep: timedelta | None = None
    history: int | None = None
    description: str = ""

    def __post_init__(self) -> None:
        for attribute in ("name", "entity"):
            value = getattr(self, attribute)
            if not NAME.fullmatch(value):
                raise ConfigError(f"a view's {attribute} is lower-case letters, digits and underscores",
                                  field=attribute, value=value, remedy="begin with a letter")  # fmt: skip
        if not 1 <= self.version < _MAX_VERSION:
            raise self._unfit("version", self.version, "count versions from 1")
        if not self.owner:
            raise self._unfit("owner", self.owner, "name a team or a person")
        if self.history is not None and self.history < 1:
            raise self._unfit("history", self.history, "keep at least one entry")
        self._check_ages()
        self._check_fields()

    def __getstate__(self) -> dict[str, Any]:
        """What was declared, without what was worked out from it: decoders do not travel to other processes."""
        return {field.name: getattr(self, field.name) for field in dataclass_fields(self)}

    def _check_ages(self) -> None:
        if self.ttl is not None and self.ttl <= timedelta(0):
            raise self._unfit("ttl", self.ttl, "give a positive age, or None for none")
        if self.ttl is None and self.keep is not None:
            raise self._unfit("keep", self.keep, "give a ttl too: a value that is never stale is kept")
        if self.keep is not None and self.ttl is not None and self.keep < self.ttl:
            raise self._unfit("keep", self.keep, "keep values at least as long as the ttl")

    def _check_fields(self) -> None:
        names = [field.name for field in self.fields]
        if not names:
            raise self._unfit("fields", names, "declare at least one field")
        if len(set(names)) < len(names):
            raise self._unfit("fields", names, "give each field a name of its own")
        if taken := sorted(set(names) & set(RESERVED)):
            raise self._unfit("fields", taken, f"these names are taken in every table: {', '.join(RESERVED)}")
        if self.history is not None and any(field.kind in VECTORS or field.kind in LISTS for field in self.fields):
            raise self._unfit("fields", names, "a history has scalar fields only")

    def _unfit(self, attribute: str, value: object, remedy: str) -> ConfigError:
        return ConfigError(f"the view {self.name} does not fit", field=attribute, value=value, remedy=remedy)

    @cached_property
    def ttl_micros(self) -> int | None:
        """The ttl in microseconds."""
        return None if self.ttl is None else self.ttl // _MICROSECOND

    @cached_property
    def keep_micros(self) -> int | None:
        """`keep`, given or twice the ttl, in microseconds."""
        if self.ttl is None:
            return None
        return (2 * self.ttl if self.keep is None else self.keep) // _MICROSECOND

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the fields."""
        return tuple(field.name for field in self.fields)

    @cached_property
    def codec(self) -> Codec:
        """Bytes of a value."""
        return Codec(self)

    @cached_property
    def entries(self) -> EntryCodec:
        """Bytes of a history."""
        return EntryCodec(self)

    @cached_property
    def label(self) -> str:
        """`name:version`."""
        return f"{self.name}:{self.version}"

    @cached_property
    def _suffix(self) -> bytes:
        return f"}}:{self.name}:{self.version}".encode()

    def key(self, entity: str) -> bytes:
        """`wf:{entity}:view:version`; the braces keep an entity's keys in one slot of a Redis Cluster.

        An id over 360 bytes, or one with a brace, stands as its SHA-256.

        Raises:
            InputError: not a text, empty, or not encodable.
        """
        if not isinstance(entity, str) or not entity:
            raise InputError(f"the {self.entity} of the view {self.name} is named by a text that is not empty",
                             field="entity", value=entity, remedy="give the id as a string")  # fmt: skip
        try:
            name = entity.encode()
        except UnicodeEncodeError:
            raise InputError("an id that cannot be encoded", field="entity", value=entity,
                             remedy="give valid Unicode") from None  # fmt: skip
        if len(name) > _MAX_ENTITY or b"{" in name or b"}" in name or name.startswith(_HASHED):
            name = _HASHED + hashlib.sha256(name).hexdigest().encode()
        return b"wf:{" + name + self._suffix

    def stale(self, event_time: int, now: int) -> bool:
        """Whether a value of this event time is older than the ttl; both in UTC microseconds."""
        return self.ttl_micros is not None and now - event_time > self.ttl_micros

    def gone(self, event_time: int, now: int) -> bool:
        """Whether a value of this event time is no longer kept."""
        return self.keep_micros is not None and now - event_time >= self.keep_micros


class Views(Mapping[str, View]):
    """Views by `name:version`; `name` alone stands for its newest version.

    Args:
        views: all versions that are read or written.

    Raises:
        ConfigError: a version declared twice, or one name for two entities.
    """

    def __init__(self, views: Iterable[View]) -> None:
        self._views: dict[str, View] = {}
        self._newest: dict[str, View] = {}
        for view in sorted(views, key=lambda view: (view.name, view.version)):
            if view.label in self._views:
                raise ConfigError("a view is declared twice", field="view", value=view.label,
                                  remedy="count its version up")  # fmt: skip
            if view.name in self._newest and self._newest[view.name].entity != view.entity:
                raise ConfigError("one name for two entities", field="view", value=view.name, remedy="rename one")
            self._views[view.label] = self._newest[view.name] = view

    def __getitem__(self, name: str) -> View:
        found = self._views.get(name) or self._newest.get(name)
        if found is None:
            raise InputError("no view has this name", field="view", value=name,
                             remedy=f"take one of {', '.join(self._views) or 'none'}")  # fmt: skip
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._views or name in self._newest

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)


def load_views(place: str) -> Views:
    """Import views from `package.module` or `package.module:VARIABLE` (VIEWS unless named).

    The variable is a `Views`, or a list or tuple of `View`.

    Raises:
        ConfigError: no such module or variable, or something else in it.
    """
    module, _, variable = place.partition(":")
    remedy = "name an importable module that declares VIEWS, such as feature_store.standard"
    try:
        found: Any = getattr(import_module(module), variable or "VIEWS")
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"no views there: {error}", field="views", value=place, remedy=remedy) from error
    if isinstance(found, Views):
        return found
    if not isinstance(found, list | tuple) or not all(isinstance(view, View) for view in found):
        raise ConfigError("this variable holds no views", field="views", value=place, remedy=remedy)
    return Views(found)
