"""Materialisation on Spark: every partition brings its rows into the online store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from feature_store.opening import open_store
from feature_store.tables import conform, materialize
from offline.point_in_time import conform_frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pyspark.sql import DataFrame

    from feature_store.opening import Timeouts
    from feature_store.views import View


def materialize_frame(
    view: View,
    table: DataFrame,
    address: str,
    *,
    timeouts: Timeouts | None = None,
    columns: Mapping[str, str] | None = None,
) -> int:
    """Bring a table into a store, as `feature_store.tables.materialize` does.

    A partition that fails is run again by Spark, which changes nothing: puts and merges may be repeated. On a cluster
    the store is Redis; an embedded one is reached from the processes of its own machine only.

    Args:
        view: of the rows.
        table: see `feature_store.tables`.
        address: of the store, see `feature_store.opening`.
        timeouts: of its clients.
        columns: where a column of the view stands under another name.

    Returns:
        Number of rows.

    Raises:
        InputError: an absent column. A value that does not fit fails the job with its field named.
    """
    from pyspark.sql import functions as F  # noqa: N812

    def bring(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        store = open_store(address, timeouts)
        try:
            rows = materialize(store, view, (conform(view, pa.Table.from_batches([batch])) for batch in batches))
        finally:
            store.close()
        yield pa.RecordBatch.from_pydict({"rows": [rows]})

    renamed = table.select("*", *(F.col(source).alias(name) for name, source in (columns or {}).items()))
    counted = conform_frame(view, renamed).mapInArrow(bring, "rows long").agg(F.sum("rows"))
    return int(counted.collect()[0][0] or 0)
