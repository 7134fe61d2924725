"""Items and users as tables: templated titles and texts that carry the category, brand and style words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from recsys.datasets.marketplace.settings import NEVER, STYLE, Indices, Ints, Stream, stream
from recsys.datasets.marketplace.words import COLOURS, MATERIALS, STYLE_WORDS
from recsys.records import ITEMS, USERS

if TYPE_CHECKING:
    from recsys.datasets.marketplace.world import Marketplace

CHUNK: Final = 100_000  # items per piece of the table; also the unit of randomness of their texts
_WITHOUT_TEXT = 0.02
_REGIONS: Final = ("north", "east", "south", "west")


def items_table(market: Marketplace, first: int, until: int) -> pa.Table:
    """Items first .. until - 1; `first` is a multiple of `CHUNK` and the range does not cross the next one."""
    catalog = market.catalog
    end = min(first + CHUNK, len(catalog))
    rng = stream(market.seed, Stream.TITLES, first // CHUNK)
    series = rng.integers(100, 1000, size=end - first)[: until - first]
    silent = rng.random(end - first)[: until - first] < _WITHOUT_TEXT
    items = np.arange(first, until)
    leaf = catalog.leaf[items]
    paths = [catalog.tree.path(index) for index in range(catalog.tree.leaves)]
    words, poles = _style_words(market, items)
    colours, materials = _looks(market, items)
    brands = [catalog.brand_names[brand] for brand in catalog.brand[items].tolist()]
    names = [paths[index][2] for index in leaf.tolist()]
    titles = [
        f"{brand} {first_word} {second_word} {name}, {colour} {material}, {brand[0]}{number}"
        for brand, (first_word, second_word, _), name, colour, material, number in zip(
            brands, words, names, colours, materials, series.tolist(), strict=True
        )
    ]
    texts = [
        None
        if quiet
        else f"{a.capitalize()}, {b} and {c}: {name} by {brand}, from our {paths[index][0].lower()} range. "
        f"Made of {material}, in {colour}, for people who like their {paths[index][1]} {a}."
        for quiet, (a, b, c), index, brand, material, colour, name in zip(
            silent.tolist(), words, leaf.tolist(), brands, materials, colours, names, strict=True
        )
    ]
    attributes = [
        [("colour", colour), ("material", material), ("style", pole)]
        for colour, material, pole in zip(colours, materials, poles, strict=True)
    ]
    until_times = catalog.available_until[items]
    created = pa.array(catalog.created_at[items])
    columns = {
        "item_id": market.item_ids(items),
        "title": titles,
        "category_path": pa.array(paths, pa.list_(pa.string())).take(pa.array(leaf)),
        "brand": brands,
        "price_micros": catalog.price_micros[items],
        "text": texts,
        "created_at": created,
        "available_from": created,
        "available_until": pa.array(until_times, mask=until_times == NEVER),
        "attributes": pa.array(attributes, ITEMS.field("attributes").type),
    }
    return pa.table([pa.array(columns[name], ITEMS.field(name).type) for name in ITEMS.names], schema=ITEMS)


def users_table(market: Marketplace, block: int, before: int) -> pa.Table:
    """The users of a block who joined before a time."""
    people = market.people(block)
    here = people.joined_at < before
    users = people.user[here]
    attributes = [[("region", _REGIONS[user * 2_654_435_761 % 2**32 >> 30])] for user in users.tolist()]
    columns = {
        "user_id": market.user_ids(users),
        "created_at": people.joined_at[here],
        "attributes": attributes,
    }
    return pa.table([pa.array(columns[name], USERS.field(name).type) for name in USERS.names], schema=USERS)


def _style_words(market: Marketplace, items: Ints) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Per item the words of its three strongest style coordinates, and the first of them alone."""
    style = market.catalog.style[items]
    strongest = np.argsort(-np.abs(style), axis=1)[:, :3]
    positive = np.take_along_axis(style, strongest, axis=1) > 0
    flat = np.array(STYLE_WORDS, dtype=object)[strongest, positive.astype(np.int64)]
    words = [(a, b, c) for a, b, c in flat.tolist()]
    return words, [word for word, _, _ in words]


def _looks(market: Marketplace, items: Ints) -> tuple[list[str], list[str]]:
    """Colour and material, each the one that suits the item's style best; the same rule for all items of a world."""
    rng = stream(market.seed, Stream.TITLES)
    style = market.catalog.style[items].astype(np.float64)
    chosen: list[list[str]] = []
    for names in (COLOURS, MATERIALS):
        fit = np.einsum("nd,cd->nc", style, rng.standard_normal((len(names), STYLE)))
        best: Indices = fit.argmax(axis=1).astype(np.int32)
        chosen.append([names[index] for index in best.tolist()])
    return chosen[0], chosen[1]
