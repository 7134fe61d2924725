"""text_embeddings: one vector per item from its text, encoded once per text.

Beside the contract's columns, data/ holds `text_key`, the SHA-256 of the text: vectors of the previous run are taken
over where model and text are the same, so that an increment encodes new and changed items only.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np

from offline.job import Outcome
from recsys.text.encoder import TextEncoder, encoder_dimension, load_encoder
from recsys.text.item_text import item_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pandas as pd
    from pyspark.sql import DataFrame

    from offline.job import JobContext

VERSION: Final = 1
_ROWS_PER_TASK: Final = 2048


def text_embeddings(context: JobContext, *, model: str, max_tokens: int, bfloat16: bool) -> Outcome:
    """Encode every item's text; an item without any text gets the zero vector."""
    from pyspark.sql import functions as F  # noqa: N812

    columns = ("item_index", "title", "category_path", "brand", "text")
    texts = context.read("catalog").select(*columns).mapInPandas(_compose, "item_index int, text string, key string")
    texts = texts.persist()
    known: DataFrame | None = None
    todo = texts
    if context.previous is not None:
        known = context.read("text_embeddings").select(F.col("text_key").alias("key"), "vector", "has_text")
        known = known.dropDuplicates(["key"])
        todo = texts.join(known, "key", "left_anti")
    fresh = todo.count()
    encoded = _encode(todo.repartition(max(1, -(-fresh // _ROWS_PER_TASK))), model, max_tokens, bfloat16=bfloat16)
    written = context.write(encoded) if fresh or known is None else 0
    if known is not None:
        taken = texts.join(known, "key")
        written = context.write(taken.select("item_index", "vector", "has_text", F.col("key").alias("text_key")))
    texts.unpersist()
    output = context.session.read.parquet(f"file:{context.output / 'data'}")
    missing = output.where("NOT has_text").count()
    return Outcome(
        {"written": written, "encoded": fresh, "taken_over": written - fresh, "without_text": missing},
        increment=known is not None,
    )


def _compose(batches: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    for batch in batches:
        paths = [() if path is None else tuple(path) for path in batch["category_path"]]
        fields = zip(batch["title"], paths, batch["brand"], batch["text"], strict=True)
        texts = [item_text(*row) for row in fields]
        keys = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        yield batch[["item_index"]].assign(text=texts, key=keys)


def _encode(texts: DataFrame, model: str, max_tokens: int, *, bfloat16: bool) -> DataFrame:
    dimension = encoder_dimension(model)

    def encode(batches: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            has_text = batch["text"].to_numpy() != ""
            vectors = np.zeros((len(batch), dimension), dtype=np.float32)
            if has_text.any():  # loading takes longer than the job itself
                encoder = _worker_encoder(model, max_tokens, bfloat16=bfloat16)
                vectors[has_text] = encoder.encode(batch["text"][has_text].tolist())
            yield batch[["item_index"]].assign(vector=list(vectors), has_text=has_text, text_key=batch["key"])

    return texts.mapInPandas(encode, "item_index int, vector array<float>, has_text boolean, text_key string")


@lru_cache(maxsize=1)
def _worker_encoder(model: str, max_tokens: int, *, bfloat16: bool) -> TextEncoder:
    """The encoder of this Python worker, kept from task to task; one thread, as Spark runs a worker per core."""
    import torch

    torch.set_num_threads(1)
    return load_encoder(model, max_tokens=max_tokens, bfloat16=bfloat16)
