"""Feast beside our feature store: runs in an environment with Feast, fills its Redis store and times its reads.

Speaks lines of JSON: first what to do, then a number per read; answers with the milliseconds. Imports nothing of ours.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Array, Float32, Float64, Int64, String

_PROFILE = {"country": String, "segment": String, "brands": Array(String), "age": Int64, "spent": Float64}
_TTL = timedelta(days=7)


def views(order: dict[str, Any]) -> tuple[Entity, list[FeatureView]]:
    """The three views of the measurement."""
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    schemas = {
        "counts": dict.fromkeys(order["counts"], Int64),
        "profile": _PROFILE,
        "taste": {"vector": Array(Float32)},
    }
    found = []
    for name, types in schemas.items():
        source = FileSource(name=name, path=order["table"], timestamp_field="event_timestamp")
        schema = [Field(name=field, dtype=kind) for field, kind in types.items()]
        found.append(FeatureView(name=name, entities=[user], ttl=_TTL, schema=schema, source=source))
    return user, found


def main() -> None:
    """Fill, say ready, then answer reads until the input ends."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # what Feast prints must not stand between the answers
    order = json.loads(sys.stdin.readline())
    folder = Path(order["folder"])
    config = RepoConfig(
        project=order["project"],
        provider="local",
        registry=str(folder / "registry.db"),
        online_store={"type": "redis", "connection_string": order["address"]},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    user, declared = views(order)
    store.apply([user, *declared])
    store.apply([FeatureService(name="bench", features=declared)])
    table = pd.read_parquet(order["table"])
    for view in declared:
        names = [field.name for field in view.schema if field.name != "user_id"]
        store.write_to_online_store(view.name, table[["user_id", "event_timestamp", *names]])
    service = store.get_feature_service("bench")
    reads = order["reads"]
    answers.write(json.dumps({"feast": version("feast")}) + "\n")
    answers.flush()
    for line in sys.stdin:
        rows = [{"user_id": entity} for entity in reads[json.loads(line)]]
        began = time.perf_counter_ns()
        found = store.get_online_features(features=service, entity_rows=rows).to_dict()
        took = (time.perf_counter_ns() - began) / 1e6
        missing = sum(value is None for name in ("clicks", "spent", "vector") for value in found[name])
        answers.write(json.dumps({"ms": took, "missing": missing}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
