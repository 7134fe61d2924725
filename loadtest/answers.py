"""What an answer counts as, read from its bytes without parsing them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from loadtest.samples import OK

if TYPE_CHECKING:
    from loadtest.target import Request

Judge = Callable[["Request", int, bytes], "str | None"]
"""Names what is wrong with a 2xx answer, in a short word that is counted as an error; None if nothing is."""

_SERVED_BY: Final = re.compile(rb'"served_by"\s*:\s*"([A-Za-z0-9_]{1,40})"')
_AN_ITEM: Final = re.compile(rb'"items"\s*:\s*\[\s*\{')
EMPTY: Final = "empty"


def served_by(body: bytes) -> str:
    """The tier an answer names; empty where it names none.

    The first occurrence counts: answers name their tier before anything that a catalogue wrote.
    """
    found = _SERVED_BY.search(body)
    return found[1].decode() if found else ""


def outcome_of(request: Request, status: int, body: bytes, judge: Judge | None) -> str:
    """`ok`, or the kind of error: `http_<status>`, or the judge's word behind `invalid_`."""
    if not 200 <= status < 300:
        return f"http_{status}"
    wrong = judge(request, status, body) if judge is not None else None
    return OK if wrong is None else f"invalid_{wrong}"


def not_empty(request: Request, status: int, body: bytes) -> str | None:  # noqa: ARG001 - a judge
    """A judge: recommend and similar must answer with items; what holds no list of them has none, too."""
    return EMPTY if request.kind != "events" and not _AN_ITEM.search(body) else None
