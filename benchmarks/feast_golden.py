"""Bytes as Feast itself writes them to Redis; run it in an environment with Feast, it prints JSON for the tests."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Any

from feast.infra.online_stores.helpers import _mmh3, _redis_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import (
    BoolList,
    BytesList,
    DoubleList,
    FloatList,
    Int32List,
    Int64List,
    Null,
    StringList,
    Value,
)
from google.protobuf.timestamp_pb2 import Timestamp

VALUES: dict[str, tuple[Value, Any]] = {
    "bytes": (Value(bytes_val=b"\x01\x02"), "0102"),
    "string": (Value(string_val="größer"), "größer"),
    "empty_string": (Value(string_val=""), ""),
    "int32": (Value(int32_val=-7), -7),
    "int64": (Value(int64_val=-(2**63)), -(2**63)),
    "zero": (Value(int64_val=0), 0),
    "double": (Value(double_val=-0.125), -0.125),
    "float": (Value(float_val=1.5), 1.5),
    "bool": (Value(bool_val=True), True),
    "unix_timestamp": (Value(unix_timestamp_val=1_700_000_000), 1_700_000_000),
    "bytes_list": (Value(bytes_list_val=BytesList(val=[b"", b"\xff"])), ["", "ff"]),
    "string_list": (Value(string_list_val=StringList(val=["a", "", "ü"])), ["a", "", "ü"]),
    "int32_list": (Value(int32_list_val=Int32List(val=[-1, 0, 300])), [-1, 0, 300]),
    "int64_list": (Value(int64_list_val=Int64List(val=[-(2**63), 2**63 - 1])), [-(2**63), 2**63 - 1]),
    "double_list": (Value(double_list_val=DoubleList(val=[0.5, -2.0])), [0.5, -2.0]),
    "float_list": (Value(float_list_val=FloatList(val=[0.5, -2.0])), [0.5, -2.0]),
    "bool_list": (Value(bool_list_val=BoolList(val=[True, False])), [True, False]),
    "empty_list": (Value(int64_list_val=Int64List(val=[])), []),
    "null": (Value(null_val=Null.NULL), None),
    "unset": (Value(), None),
}
HASHED = ["", "a", "ab", "abc", "user_counts:clicks", "größe:ü", "a-longer-name:with_more_bytes"]


def entity_key(names: list[str], values: list[Value]) -> str:
    """Hexadecimal key of one entity in the project `shop`."""
    key: bytes = _redis_key("shop", EntityKey(join_keys=names, entity_values=values))
    return key.hex()


def main() -> None:
    """Print them."""
    time = Timestamp()
    time.FromDatetime(datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC))
    found = {
        "values": {
            name: {"raw": raw.SerializeToString().hex(), "value": value} for name, (raw, value) in VALUES.items()
        },
        "hashes": {name: _mmh3(name).hex() for name in HASHED},
        "keys": {
            "string": entity_key(["user_id"], [Value(string_val="änn")]),
            "int64": entity_key(["user_id"], [Value(int64_val=-42)]),
        },
        "time": {"raw": time.SerializeToString().hex(), "micros": 1_767_323_045_678_901},
    }
    sys.stdout.write(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
