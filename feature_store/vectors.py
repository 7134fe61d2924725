"""Vectors of items or users in a view: as float16, or as int8 codes with a scale, shortened first or as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from feature_store.fields import Field, Kind
from feature_store.store import Write
from feature_store.views import View
from recsys.errors import ConfigError, InputError
from recsys.models.vector_codes import Int8Codes, from_int8, to_float16, to_int8

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import timedelta

    import numpy.typing as npt

    from feature_store.store import FeatureStore

    Floats = npt.NDArray[np.float32]

Codes = Literal["float16", "int8"]
VECTOR: Final = "vector"
SCALE: Final = "scale"
_AT_ONCE: Final = 1_024  # vectors written or read in one call of the store


def vector_view(
    name: str,
    entity: str,
    width: int,
    *,
    codes: Codes,
    version: int,
    owner: str,
    ttl: timedelta | None = None,
    description: str = "",
) -> View:
    """A view that holds one vector per entity.

    Args:
        name: see `View`.
        entity: see `View`.
        width: D of the vectors that are stored.
        codes: `float16` (2 D bytes) or `int8` (D bytes and a scale of 9).
        version: see `View`; vectors of another encoder or compressor need another one, though their width be the same.
        owner: see `View`.
        ttl: see `View`.
        description: see `View`.

    Raises:
        ConfigError: names the argument that does not fit.
    """
    if codes == "float16":
        fields: tuple[Field, ...] = (Field(VECTOR, Kind.FLOAT16_VECTOR, width),)
    elif codes == "int8":
        fields = (Field(VECTOR, Kind.INT8_VECTOR, width), Field(SCALE, Kind.FLOAT64))
    else:
        raise ConfigError("no such codes", field="codes", value=codes, remedy="float16 or int8")
    return View(name, entity, fields, version, owner, ttl=ttl, description=description)


def put_vectors(
    store: FeatureStore,
    view: View,
    entities: Sequence[str],
    vectors: npt.NDArray[np.floating],
    *,
    event_time: int,
    compress: Callable[[npt.NDArray[Any]], npt.NDArray[np.floating]] | None = None,
) -> int:
    """Write vectors, a zero vector too; what is there and newer stays.

    Args:
        store: written to, 1,024 vectors a call.
        view: of `vector_view`.
        entities: (N,) ids.
        vectors: (N, D) of the view's width, or of what `compress` takes.
        event_time: of all of them, UTC microseconds.
        compress: makes (N, D) of a larger width, for instance `recsys.retrieval.compressing.open_compressor(FILE)`.

    Returns:
        How many of them the store now holds because of this call.

    Raises:
        ConfigError: not a view of vectors.
        InputError: another number of vectors than of entities, vectors of another width, or not finite. Calls before
            that of the offending vector were written.
        UnavailableError: the store did not acknowledge; repeating is harmless.
    """
    kind, width = _form(view)
    if vectors.ndim != 2 or len(vectors) != len(entities):
        raise InputError(
            f"{len(entities)} entities need as many vectors", field="vectors", value=vectors.shape, remedy="one a row"
        )
    held = 0
    for begin in range(0, len(entities), _AT_ONCE):
        part = vectors[begin : begin + _AT_ONCE]
        short = part if compress is None else compress(part)
        if short.shape[1] != width:
            raise InputError(
                f"the view {view.label} holds vectors of {width} dimensions",
                field="vectors",
                value=short.shape[1],
                remedy="take a compressor of this width, or declare another view",
            )
        names = entities[begin : begin + _AT_ONCE]
        writes = [Write(view, name, value, event_time) for name, value in zip(names, _values(kind, short), strict=True)]
        held += sum(store.put(writes))
    return held


def read_vectors(
    store: FeatureStore, view: View, entities: Sequence[str], *, deadline: float | None = None
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """The vectors that the codes stand for.

    Args:
        store: read from, in one call.
        view: of `vector_view`.
        entities: (N,) ids.
        deadline: see `FeatureStore.read`.

    Returns:
        (N, D) float32, zero where nothing is held; and (N,) whether something is, stale or not.

    Raises:
        ConfigError: not a view of vectors.
        InputError: an id that cannot be a name.
    """
    kind, width = _form(view)
    found, there = np.zeros((len(entities), width), dtype=np.float32), np.zeros(len(entities), dtype=np.bool_)
    for row, reading in enumerate(store.read([(view, entity) for entity in entities], deadline=deadline)):
        if reading.values is None:
            continue
        there[row] = True
        vector = reading.values[VECTOR]
        if kind is Kind.INT8_VECTOR:
            scale = np.array([reading.values[SCALE]], dtype=np.float32)
            found[row] = from_int8(Int8Codes(vector[None], scale))[0]
        else:
            found[row] = vector
    return found, there


def _form(view: View) -> tuple[Kind, int]:
    """Kind and width of a view's vectors."""
    names = {(VECTOR,): Kind.FLOAT16_VECTOR, (VECTOR, SCALE): Kind.INT8_VECTOR}
    kind = names.get(view.names)
    if kind is None or view.fields[0].kind is not kind:
        raise ConfigError(
            "not a view of vectors", field="view", value=view.label, remedy="declare it by feature_store.vectors"
        )
    return kind, view.fields[0].length


def _values(kind: Kind, vectors: npt.NDArray[np.floating]) -> list[dict[str, Any]]:
    if kind is Kind.FLOAT16_VECTOR:
        return [{VECTOR: row} for row in to_float16(vectors)]
    codes, scales = to_int8(vectors)
    return [{VECTOR: row, SCALE: scale} for row, scale in zip(codes, scales.tolist(), strict=True)]
