from __future__ import annotations

import pickle
from datetime import timedelta
from typing import Any

import pytest

from feature_store.fields import Field, Kind
from feature_store.views import View, Views, load_views
from recsys.errors import ConfigError, InputError

CLICKS = Field("clicks", Kind.INT64)


def view(**changed: Any) -> View:
    given: dict[str, Any] = {"name": "counts", "entity": "user", "fields": (CLICKS,), "version": 1, "owner": "team"}
    return View(**(given | changed))


VIEWS = [view(), view(version=2), view(name="other")]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"name": "Counts"}, "name"),
        ({"entity": "the user"}, "entity"),
        ({"version": 0}, "version"),
        ({"owner": ""}, "owner"),
        ({"ttl": timedelta(0)}, "ttl"),
        ({"keep": timedelta(days=1)}, "keep"),
        ({"ttl": timedelta(days=2), "keep": timedelta(days=1)}, "keep"),
        ({"fields": ()}, "fields"),
        ({"fields": (CLICKS, CLICKS)}, "fields"),
        ({"fields": (Field("event_time", Kind.INT64),)}, "fields"),
        ({"history": 0}, "history"),
        ({"history": 3, "fields": (Field("v", Kind.FLOAT32_VECTOR, 2),)}, "fields"),
    ],
)
def test_a_declaration_that_does_not_fit_is_named(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[{named} = "):
        view(**changed)


@pytest.mark.parametrize(
    ("name", "kind", "length"), [("2x", Kind.BOOL, 0), ("x", Kind.BOOL, 3), ("x", Kind.INT8_VECTOR, 0)]
)
def test_a_field_that_does_not_fit_is_named(name: str, kind: Kind, length: int) -> None:
    with pytest.raises(ConfigError, match=r"name|length"):
        Field(name, kind, length)


def test_a_key_names_entity_view_and_version() -> None:
    assert view(version=3).key("ann") == b"wf:{ann}:counts:3"


def test_long_and_braced_ids_stand_as_their_hash_and_none_passes_for_another() -> None:
    keys = {view().key(name) for name in ("é" * 300, "é" * 301, "a}b", "{a", "a")}
    assert len(keys) == 5
    assert max(map(len, keys)) < 128
    hashed = view().key("a}b").removeprefix(b"wf:{").partition(b"}")[0].decode()
    assert view().key(hashed) != view().key("a}b")


@pytest.mark.parametrize("entity", ["", 7, None, "\ud800"])
def test_an_entity_that_is_no_name_is_refused(entity: Any) -> None:
    with pytest.raises(InputError, match="entity = "):
        view().key(entity)


def test_a_value_is_kept_for_twice_its_ttl_unless_told() -> None:
    hour = 3_600_000_000
    aged = view(ttl=timedelta(hours=1))
    assert [aged.stale(0, now) for now in (hour, hour + 1)] == [False, True]
    assert [aged.gone(0, now) for now in (2 * hour - 1, 2 * hour)] == [False, True]
    assert view(ttl=timedelta(hours=1), keep=timedelta(hours=1)).gone(0, hour)
    assert not view().stale(0, 10**18)
    assert not view().gone(0, 10**18)


def test_a_name_alone_stands_for_the_newest_version() -> None:
    views = Views(VIEWS)
    assert views["counts"].version == 2
    assert views["counts:1"].version == 1
    assert list(views) == ["counts:1", "counts:2", "other:1"]
    assert "counts" in views
    with pytest.raises(InputError, match=r"counts:1, counts:2, other:1"):
        views["nothing"]


def test_contradicting_declarations_are_refused() -> None:
    with pytest.raises(ConfigError, match="twice"):
        Views([view(), view()])
    with pytest.raises(ConfigError, match="two entities"):
        Views([view(), view(version=2, entity="item")])


def test_views_are_loaded_by_module_and_variable() -> None:
    assert list(load_views(f"{__name__}:VIEWS")) == ["counts:1", "counts:2", "other:1"]


@pytest.mark.parametrize("place", ["no.such.module", "feature_store.views", "feature_store.views:RESERVED", ""])
def test_a_place_without_views_is_refused(place: str) -> None:
    with pytest.raises(ConfigError, match="views = "):
        load_views(place)


def test_a_view_travels_to_other_processes_after_use() -> None:
    used = view(ttl=timedelta(hours=1))
    used.codec.encode({"clicks": 1}, 0, 0)
    assert pickle.loads(pickle.dumps(used)) == used
