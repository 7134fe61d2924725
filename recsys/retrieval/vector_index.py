"""Items by their vectors: what was built, what came since, and what is gone.

An index has a *built* segment, which a faiss index searches, and a *fresh* one, the vectors that were put in since the
build and are searched exactly. A removed item is a tombstone in the built segment. A rebuild merges all three; it
may run in a thread while the index answers and changes. What readers see is one immutable state, replaced as a whole.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from recsys.decoding.packed import bits_of
from recsys.errors import ConfigError, InputError
from recsys.retrieval.checks import check_rows, check_vectors, unit_length
from recsys.retrieval.kinds import build
from recsys.retrieval.segments import Built, State
from recsys.retrieval.settings import IndexSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from recsys.decoding.packed import Bools
    from recsys.retrieval.checks import Rows, Vectors
    from recsys.retrieval.compressing import Shortener
    from recsys.retrieval.kinds import Positions

Number = TypeVar("Number", np.float32, np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Items, best first; equal scores by row.

    Attributes:
        rows: (m,) int64 catalogue rows, each once.
        scores: (m,) float32 inner products, those of unit vectors where the index compares by cosine.
        exact: whether every eligible vector was looked at.
    """

    rows: Rows
    scores: npt.NDArray[np.float32]
    exact: bool


class VectorIndex:
    """Nearest items to a vector, by catalogue row; safe to share between threads.

    Args:
        state: see `build_index` and `recsys.retrieval.files.load_index`.
        settings: of the index.
        cosine: whether vectors and queries are brought to length 1.
        shortener: of the built segment, see `build_index`.
    """

    def __init__(
        self, state: State, settings: IndexSettings, *, cosine: bool, shortener: Shortener | None = None
    ) -> None:
        self.settings = settings
        self.cosine = cosine
        self.shortener = shortener
        self._state = state
        self._writing = threading.Lock()
        self._rebuilding = threading.Lock()

    def __len__(self) -> int:
        state = self._state
        return len(state.living()) + len(state.rows)

    @property
    def state(self) -> State:
        """What it holds now; does not change."""
        return self._state

    @property
    def dimension(self) -> int:
        """D of the vectors."""
        return int(self._state.built.vectors.shape[1])

    @property
    def crowded(self) -> bool:
        """Whether so much was put in or removed since the build that a rebuild pays."""
        state = self._state
        gone = 0 if state.dead is None else int(np.count_nonzero(state.dead))
        return len(state.rows) > self.settings.fresh_most or 2 * gone > len(state.built.rows)

    def vector(self, row: int) -> Vectors | None:
        """The (D,) vector of a row as it is compared, a copy; None where it has none."""
        state = self._state
        fresh = np.flatnonzero(state.rows == row)
        if fresh.size:
            put: Vectors = state.vectors[int(fresh[0])].copy()
            return put
        rows = state.built.rows
        place = int(np.searchsorted(rows, row))
        if place == len(rows) or rows[place] != row or (state.dead is not None and state.dead[place]):
            return None
        # no view: a rebuild may let go of faiss's memory while the caller still reads
        vector: Vectors = state.built.vectors[place].copy()
        return vector

    def search(self, query: npt.NDArray[Any], k: int, allowed: Bools | None = None) -> Found:
        """The items nearest to a vector.

        An approximate index may miss near items; it never answers an item that may not be shown, and never
        fewer than min(k, eligible items).

        Args:
            query: (D,) numbers.
            k: items wanted, at least 1.
            allowed: (R,) by catalogue row whether an item may be shown; rows from R on may not. None = all may.

        Raises:
            InputError: k below 1, or a query of another dimension, not finite, or 0 where only directions count.
        """
        if k < 1:
            raise InputError("at least one item must be wanted", field="k", value=k, remedy="ask for 1 or more")
        vector = self._query(query)
        state = self._state
        rows, vectors, exact = _near(state, vector, k, allowed, self.settings)
        fresh = np.arange(len(state.rows)) if allowed is None else np.flatnonzero(_at(allowed, state.rows))
        rows, vectors = np.concatenate([rows, state.rows[fresh]]), np.concatenate([vectors, state.vectors[fresh]])
        scores = inner_products(vectors.astype(np.float64), vector.astype(np.float64)).astype(np.float32)  # (m,)
        order = np.lexsort((rows, -scores))[:k]
        return Found(rows[order], scores[order], exact)

    def put(self, rows: npt.NDArray[np.integer], vectors: npt.NDArray[Any]) -> None:
        """Put items in, or give them other vectors; the next search finds them.

        Args:
            rows: (N,) catalogue rows, each once.
            vectors: (N, D).

        Raises:
            InputError: a row that stands twice, or a vector of another dimension, not finite, or 0 where only
                directions count. Nothing is changed then.
        """
        checked = check_vectors(np.asarray(vectors), self.dimension)
        taken = check_rows(np.asarray(rows), len(checked))
        scaled = unit_length(checked) if self.cosine else checked
        if self.cosine:
            _refuse_zero(scaled)
        with self._writing:
            state = self._state.without(taken)
            last = state.last + 1
            self._state = replace(
                state,
                rows=np.concatenate([state.rows, taken]),
                vectors=np.concatenate([state.vectors, scaled]),
                numbers=np.concatenate([state.numbers, np.full(len(taken), last)]),
                last=last,
            )

    def remove(self, rows: npt.NDArray[np.integer]) -> None:
        """Take items out; the next search does not find them.

        Raises:
            InputError: a row that is not in the index, or stands twice. Nothing is changed then.
        """
        given = np.asarray(rows)
        taken = check_rows(given, len(given))
        with self._writing:
            missing = np.flatnonzero(~self._state.holds(taken))
            if missing.size:
                raise InputError(
                    "this item is not in the index",
                    field="rows",
                    value=int(taken[missing[0]]),
                    remedy="remove what was put in",
                )
            state = self._state.without(taken)
            self._state = replace(state, last=state.last + 1)

    def rebuild(self, progress: Callable[[int], None] = lambda _: None) -> None:
        """Merge what came and what is gone into a new built segment; searches and changes go on meanwhile.

        Args:
            progress: told how many vectors are in.
        """
        with self._rebuilding:
            before = self._state
            living = before.living()
            rows = np.concatenate([before.built.rows[living], before.rows])
            vectors = np.concatenate([before.built.vectors[living], before.vectors])
            order = np.argsort(rows, kind="stable")
            built = build_segment(rows[order], vectors[order], self.settings, progress, self.shortener)
            with self._writing:
                self._state = _carried(before, self._state, built)

    def rebuild_in_background(self) -> Future[None]:
        """Rebuild in a thread; the future is done, or has the error, when the new segment answers."""
        done: Future[None] = Future()

        def work() -> None:
            try:
                self.rebuild()
            except BaseException as error:  # noqa: BLE001 - raised again where the future is asked
                done.set_exception(error)
            else:
                done.set_result(None)

        threading.Thread(target=work, name="windfire-index", daemon=True).start()
        return done

    def _query(self, query: npt.NDArray[Any]) -> Vectors:
        vectors = check_vectors(np.asarray(query)[None], self.dimension, field="query")
        if self.cosine:
            vectors = unit_length(vectors)
            _refuse_zero(vectors, "query")
        vector: Vectors = vectors[0]
        return vector


def build_index(
    vectors: npt.NDArray[Any],
    settings: IndexSettings,
    *,
    rows: npt.NDArray[np.integer] | None = None,
    cosine: bool = True,
    progress: Callable[[int], None] = lambda _: None,
    shortener: Shortener | None = None,
) -> VectorIndex:
    """Build an index.

    Args:
        vectors: (N, D). With `cosine` a zero vector says that an item has none: it is left out.
        settings: kind and sizes.
        rows: (N,) catalogue rows; None = 0..N-1.
        cosine: bring vectors to length 1 and compare by cosine; else by inner product.
        progress: told how many vectors are in.
        shortener: what is searched through are shorter vectors; `rescore` times as many candidates as are wanted
            are then scored by the vectors as they are, which a saved index leaves on the disk.

    Raises:
        ConfigError: a shortener, whose vectors have length 1, where lengths count.
        InputError: vectors that are not finite, or of another dimension than the shortener takes, or rows that do not
            fit or stand twice.
    """
    if shortener is not None and not cosine:
        raise ConfigError(
            "shorter vectors have no lengths", field="cosine", value=cosine, remedy="compare by cosine, or leave them"
        )
    checked = check_vectors(np.asarray(vectors))
    taken = check_rows(np.arange(len(checked)) if rows is None else np.asarray(rows), len(checked))
    order = np.argsort(taken, kind="stable")
    if cosine:
        checked = unit_length(checked)
        order = order[checked[order].any(axis=1)]
    if len(order) < len(checked) or rows is not None:
        taken, checked = taken[order], checked[order]
    built = build_segment(taken, checked, settings, progress, shortener)
    return VectorIndex(State.of(built), settings, cosine=cosine, shortener=shortener)


def build_segment(
    rows: Rows,
    vectors: Vectors,
    settings: IndexSettings,
    progress: Callable[[int], None] = lambda _: None,
    shortener: Shortener | None = None,
) -> Built:
    """A built segment of (n,) rising rows and their (n, D) vectors as they are compared."""
    if not len(rows):
        return Built(None, rows, vectors)
    made = build(vectors, settings, progress, shortener)
    held = made.stored()
    return Built(made, rows, vectors if held is None else held)


def _near(
    state: State, query: Vectors, k: int, allowed: Bools | None, settings: IndexSettings
) -> tuple[Rows, Vectors, bool]:
    """Rows and vectors of the built segment among which its k nearest are, or near ones; whether all were looked at."""
    built = state.built
    mask = _eligible(state, allowed)
    count = len(built.rows) if mask is None else int(np.count_nonzero(mask))
    share = count / max(1, len(built.rows))
    if built.proposer is None or count == 0:
        return built.rows[:0], built.vectors[:0], True
    if count > max(settings.exact_rows, k) and share > settings.exact_share:
        places = built.proposer.propose(query, k, None if mask is None else bits_of(mask), share)
        if len(places) >= k:  # else the search lost its way among what is hidden
            return built.rows[places], built.vectors[places], built.proposer.exact
    places = _best(built.vectors, query, k, mask)
    return built.rows[places], built.vectors[places], True


def _best(vectors: Vectors, query: Vectors, k: int, mask: Bools | None) -> Positions:
    """(min(k, eligible),) positions of the k nearest, in any order."""
    if mask is None:
        chosen, scores = None, inner_products(vectors, query)  # (n,)
    else:
        chosen = np.flatnonzero(mask)
        scores = inner_products(vectors[chosen], query)
    best = np.argpartition(-scores, k)[:k] if k < len(scores) else np.arange(len(scores))
    places: Positions = best if chosen is None else chosen[best]
    return places


def inner_products(vectors: npt.NDArray[Number], query: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """(n,) of (n, D) and (D,); a row's bits do not depend on the other rows, nor on a number of threads as in BLAS."""
    found: npt.NDArray[Number] = np.einsum("nd,d->n", vectors, query)
    return found


def _eligible(state: State, allowed: Bools | None) -> Bools | None:
    """(n,) by position of the built segment; None = all."""
    if allowed is None:
        return None if state.dead is None else ~state.dead
    if not state.built.dense:
        mask = _at(allowed, state.built.rows)
    elif len(allowed) >= len(state.built.rows):
        mask = allowed[: len(state.built.rows)]
    else:
        mask = np.zeros(len(state.built.rows), dtype=np.bool_)
        mask[: len(allowed)] = allowed
    return mask if state.dead is None else mask & ~state.dead


def _at(allowed: Bools, rows: Rows) -> Bools:
    """(m,) whether each row may be shown; those that `allowed` does not speak of may not."""
    found = np.zeros(len(rows), dtype=np.bool_)
    known = rows < len(allowed)
    found[known] = allowed[rows[known]]
    return found


def _carried(before: State, now: State, built: Built) -> State:
    """What changed between the state that a segment was built from and now, over that segment."""
    newer = now.numbers > before.last
    still = np.concatenate([now.built.rows[now.living()], now.rows[~newer]])
    dead = ~np.isin(built.rows, still, assume_unique=True)
    return State(built, dead if dead.any() else None, now.rows[newer], now.vectors[newer], now.numbers[newer], now.last)


def _refuse_zero(vectors: Vectors, field: str = "vectors") -> None:
    zero = np.flatnonzero(~vectors.any(axis=1))
    if zero.size:
        raise InputError(
            "a zero vector has no direction to compare",
            field=f"{field}[{zero[0]}]",
            value=0.0,
            remedy="leave the item out, or give it a text that can be encoded",
        )
