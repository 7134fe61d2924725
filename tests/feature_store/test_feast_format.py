"""Our reading of Feast's bytes against bytes that Feast 0.67 itself wrote (`benchmarks/feast_golden.py`)."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.feast_format import decode_time, decode_value, entity_key, field_name

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("feast_golden.json").read_text())


def shown(value: Any) -> Any:
    """Bytes as hexadecimal digits, as JSON has them."""
    return (
        value.hex() if isinstance(value, bytes) else [shown(one) for one in value] if isinstance(value, list) else value
    )


@pytest.mark.parametrize("name", GOLDEN["values"])
def test_a_value_is_read_as_feast_wrote_it(name: str) -> None:
    found = shown(decode_value(bytes.fromhex(GOLDEN["values"][name]["raw"])))
    wanted = GOLDEN["values"][name]["value"]
    assert (found, type(found)) == (wanted, type(wanted))


def test_names_and_keys_are_those_of_feast() -> None:
    hashes = {name: digest for name, digest in GOLDEN["hashes"].items() if ":" in name}
    assert {name: field_name(*name.split(":")).hex() for name in hashes} == hashes
    assert entity_key("shop", "user_id", "änn").hex() == GOLDEN["keys"]["string"]
    assert entity_key("shop", "user_id", -42).hex() == GOLDEN["keys"]["int64"]
    assert decode_time(bytes.fromhex(GOLDEN["time"]["raw"])) == GOLDEN["time"]["micros"]


@pytest.mark.parametrize("name", [name for name in GOLDEN["values"] if len(GOLDEN["values"][name]["raw"]) > 4])
def test_a_value_that_is_cut_off_is_refused(name: str) -> None:
    raw = bytes.fromhex(GOLDEN["values"][name]["raw"])
    with pytest.raises(ValueError, match="cut off"):
        decode_value(raw[:-1])


@given(st.binary(max_size=40))
def test_bytes_raise_nothing_but_value_errors(raw: bytes) -> None:
    for decode in (decode_value, decode_time):
        with suppress(ValueError):
            decode(raw)


@pytest.mark.parametrize("raw", ["a20100", "9a0100", "13", "0801", "6a021001"])
def test_other_kinds_are_refused(raw: str) -> None:
    with pytest.raises(ValueError, match=r"kind|wire type|field"):
        decode_value(bytes.fromhex(raw))
