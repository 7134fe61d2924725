from __future__ import annotations

import pytest

from recsys.text.item_text import item_text


@pytest.mark.parametrize(
    ("title", "path", "brand", "text", "expected"),
    [
        ("Red lacquer", ["Beauty", "Nails"], "OPI", "Half an ounce", "Red lacquer. Beauty > Nails. OPI. Half an ounce"),
        (None, ["Beauty"], "OPI", None, "Beauty. OPI"),
        ("  ", [], "", " only text ", "only text"),
        ("Title", [None, " ", "Nails"], None, None, "Title. Nails"),
        (None, None, None, None, ""),
    ],
)
def test_what_is_missing_is_left_out(
    title: str | None, path: list[str | None] | None, brand: str | None, text: str | None, expected: str
) -> None:
    assert item_text(title, path, brand, text) == expected
