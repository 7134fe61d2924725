"""Files that name the semantic ID of every item, in the forms that other projects write.

* JSON (`.json`, `.json.gz`): item id to a list of tokens (MiniOneRec's and LETTER's `.index.json`), to a list of codes,
  or to all tokens in one string (`<a_12><b_7><c_3>`).
* Parquet: a column `item_id`, `pid` or `iid`, and a column `sid` or `codes` of the same three forms (OpenOneRec's
  `pid2sid` tables hold lists of codes).
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.datasets.derived import ForeignIds
from recsys.errors import DataError, InputError
from recsys.storage import sha256_parts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from recsys.backends.prompted import Vocabulary

_TOKEN: Final = re.compile(r"<[^<>]+>")
_NUMBER: Final = re.compile(r"(\d+)>$")
_ITEMS: Final = ("item_id", "pid", "iid")
_IDS: Final = ("sid", "codes")
_AROUND: Final = "<|"  # tokens around a SID, such as <|sid_begin|>, are the template's
_SHOWN: Final = 5
_LARGEST: Final = 1 << 20  # a number above is no code


def read_sids(path: Path, pattern: str) -> dict[str, tuple[str, ...]]:
    """Read item ids and the tokens of their semantic IDs.

    Args:
        path: `.json`, `.json.gz` or `.parquet`.
        pattern: of a code's token where the file holds numbers: `{letter}` a, b, c, ... by level, `{code}` the number.

    Returns:
        item id to L tokens, in byte order of the ids.

    Raises:
        InputError: missing, unreadable, empty, an item named twice, or semantic IDs of different lengths.
    """
    if not path.is_file():
        raise InputError("no such SID file", field="sids", value=str(path), remedy="give the file that names the SIDs")
    try:
        pairs = _from_parquet(path) if path.suffix == ".parquet" else _from_json(path)
    except (OSError, EOFError, zlib.error, ValueError, RecursionError, pa.ArrowException) as error:
        raise InputError(
            f"the SID file cannot be read: {error}",
            field="sids",
            value=str(path),
            remedy="JSON of item id to tokens, or Parquet with the columns item_id and sid",
        ) from error
    found = {item: _tokens(item, value, pattern) for item, value in pairs}
    if len(found) != len(pairs):
        raise InputError("an item is named twice", field="sids", value=_first_repeated([item for item, _ in pairs]))
    if not found:
        raise InputError("the SID file names no item", field="sids", value=str(path))
    levels = len(next(iter(found.values())))
    for item, tokens in found.items():
        if len(tokens) != levels:
            raise InputError(f"item {item!r} has not {levels} codes as the first one", field="sid", value=tokens)
    return dict(sorted(found.items(), key=lambda pair: pair[0].encode()))


def match_tokens(sids: Mapping[str, tuple[str, ...]], vocabulary: Vocabulary) -> tuple[ForeignIds, list[list[int]]]:
    """Find every token in a vocabulary.

    A code's number is the one in its token; where the tokens of a level bear no numbers of their own, codes are
    numbered by token id.

    Args:
        sids: item id to tokens.
        vocabulary: of the language model.

    Returns:
        The semantic IDs, and per level (T_l,) the token id of each code, -1 for a code that no item has.

    Raises:
        DataError: a token is not in the vocabulary, or two codes of a level share a token id.
    """
    columns = list(zip(*sids.values(), strict=True))  # L x (I,)
    codes, tokens = [], []
    for level, column in enumerate(columns):
        ids = _ids_of(level, sorted(set(column)), vocabulary)
        numbers = _numbers(ids)
        table = [-1] * (max(numbers.values()) + 1)
        for token, number in numbers.items():
            table[number] = ids[token]
        codes.append([numbers[token] for token in column])
        tokens.append(table)
    array = np.array(codes, dtype=np.int32).T.copy()  # (I, L)
    sizes = tuple(len(table) for table in tokens)
    version = sha256_parts([*sids, array.tobytes(), str(sizes)])[:12]
    return ForeignIds(list(sids), array, sizes, f"imported-{version}"), tokens


def number_tokens(sids: Mapping[str, tuple[str, ...]]) -> ForeignIds:
    """Codes of tokens without the vocabulary of a model.

    A code's number is the one in its token; where the tokens of a level bear no numbers of their own, codes are
    numbered in the order of the tokens. Codebooks are as large as the largest number says.

    Args:
        sids: item id to tokens, as `read_sids` gives them.
    """
    columns = list(zip(*sids.values(), strict=True))  # L x (I,)
    codes = []
    for column in columns:
        tokens = sorted(set(column))
        written = {token: _NUMBER.search(token) for token in tokens}
        numbers = {token: int(match[1]) for token, match in written.items() if match is not None}
        if len(set(numbers.values())) != len(tokens) or max(numbers.values()) > _LARGEST:
            numbers = {token: rank for rank, token in enumerate(tokens)}
        codes.append([numbers[token] for token in column])
    array = np.array(codes, dtype=np.int32).T.copy()  # (I, L)
    sizes = tuple(int(size) + 1 for size in array.max(axis=0))
    version = sha256_parts([*sids, array.tobytes(), str(sizes)])[:12]
    return ForeignIds(list(sids), array, sizes, f"imported-{version}")


def _from_json(path: Path) -> list[tuple[str, Any]]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    pairs = json.loads(data, object_pairs_hook=list)
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise ValueError("not a JSON object of item id to semantic ID")
    return pairs


def _from_parquet(path: Path) -> list[tuple[str, Any]]:
    names = pq.read_schema(path).names
    item, sid = (next((name for name in wanted if name in names), None) for wanted in (_ITEMS, _IDS))
    if item is None or sid is None:
        raise ValueError(f"columns {names}, wanted one of {_ITEMS} and one of {_IDS}")
    table = pq.read_table(path, columns=[item, sid])
    return list(zip(map(str, table[item].to_pylist()), table[sid].to_pylist(), strict=True))


def _tokens(item: str, value: Any, pattern: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(token for token in _TOKEN.findall(value) if not token.startswith(_AROUND))
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        return tuple(part for part in value if not part.startswith(_AROUND))
    if isinstance(value, list) and value and all(type(part) is int and part >= 0 for part in value):
        return tuple(
            pattern.format(letter=ascii_lowercase[level % len(ascii_lowercase)], code=code)
            for level, code in enumerate(value)
        )
    raise InputError(
        f"item {item!r} has no semantic ID that can be read",
        field="sid",
        value=value,
        remedy="a list of tokens, a list of codes, or one string of tokens",
    )


def _ids_of(level: int, tokens: Sequence[str], vocabulary: Vocabulary) -> dict[str, int]:
    found = {token: vocabulary.token(token) for token in tokens}
    missing = [token for token, number in found.items() if number is None]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(tokens)} tokens of level {level + 1} are not in the model's vocabulary",
            field="tokens",
            value=missing[:_SHOWN],
            remedy="give the SID file that this model was trained with",
        )
    ids = {token: number for token, number in found.items() if number is not None}
    if len(set(ids.values())) != len(ids):
        raise DataError(
            f"two codes of level {level + 1} share a token id",
            field="tokens",
            value=_first_repeated(list(ids.values())),
            remedy="give every code a token of its own in the tokenizer",
        )
    return ids


def _numbers(ids: Mapping[str, int]) -> dict[str, int]:
    """Token to code."""
    written = {token: _NUMBER.search(token) for token in ids}
    numbers = {token: int(match[1]) for token, match in written.items() if match is not None}
    if len(set(numbers.values())) == len(ids) and max(numbers.values()) <= max(ids.values()):
        return numbers
    return {token: rank for rank, token in enumerate(sorted(ids, key=lambda token: ids[token]))}


def _first_repeated(values: Sequence[Any]) -> Any:
    seen: set[Any] = set()
    return next((value for value in values if value in seen or seen.add(value)), None)  # type: ignore[func-returns-value]
