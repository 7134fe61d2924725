"""One item after the other against `place_new` over all that were given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recsys.errors import InputError
from recsys.semantic_ids.artefact import Artefact
from recsys.semantic_ids.collisions import place_new, settle
from recsys.semantic_ids.placement import Placement
from recsys.semantic_ids.settings import SemanticIdSettings
from recsys.semantic_ids.sources import fit_source
from recsys.semantic_ids.tokenizer import fit_tokenizer


def built(policy: Any, sizes: tuple[int, ...]) -> Artefact:
    rng = np.random.default_rng(3)
    text = rng.normal(size=(60, 6)).astype(np.float32)
    settings = SemanticIdSettings(source="text", collisions=policy)
    source, _ = fit_source(settings, text, text)
    vectors = source.embed(text)
    tokenizer = fit_tokenizer(vectors, settings.fitting(sizes), seed=0)
    codes, settled = settle(policy, *tokenizer.encode(vectors), tokenizer)
    ids = np.array([f"item-{n:02d}" for n in range(60)], dtype=object)
    return Artefact({"tokenizer_version": "one", "codebook_sizes": settled}, settings, tokenizer, source, ids, codes)


@pytest.mark.parametrize("policy", ["reassign", "extra_digit", "buckets"])
@pytest.mark.parametrize("sizes", [(3, 4, 5), (2, 30), (16,)])
def test_it_gives_what_place_new_gives(policy: str, sizes: tuple[int, ...]) -> None:
    """Until prefixes are full, and beyond."""
    artefact = built(policy, sizes)
    placement = Placement(artefact)
    new = np.random.default_rng(4).normal(size=(60, 6)).astype(np.float32)
    new[20:] = new[20]
    taken, given = artefact.codes, []
    for n, vector in enumerate(new):
        expected = place_new(policy, artefact.source.embed(vector[None]), artefact.tokenizer, taken, artefact.sizes)  # type: ignore[arg-type]
        given.append(placement.place(vector))
        placement.take(f"new-{n}", given[-1])
        assert given[-1] == tuple(expected[0].tolist())
        taken = np.concatenate([taken, expected])


def test_an_item_keeps_what_it_has() -> None:
    artefact = built("reassign", (2, 60))
    placement = Placement(artefact)
    assert placement.given("item-07") == tuple(artefact.codes[7].tolist())
    assert placement.given("item-60") is None
    assert placement.given("a") is None
    vector = np.ones(6, dtype=np.float32)
    first = placement.place(vector)
    placement.take("a", first)
    placement.take("item-07", (0, 0))
    placement.take("a", (0, 0))
    assert placement.given("a") == first
    assert placement.given("item-07") == tuple(artefact.codes[7].tolist())
    assert placement.place(vector) != first


@pytest.mark.parametrize("codes", [(0, 0), (0, 0, 5), (0, -1, 0), (0, 0, 0, 0)])
def test_codes_of_another_tokenizer_are_refused(codes: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="one code of each codebook"):
        Placement(built("reassign", (3, 4, 5))).take("a", codes)
