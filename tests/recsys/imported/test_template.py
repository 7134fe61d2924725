from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.example_generator import Example
from recsys.backends.prompted import PromptTokens, Vocabulary
from recsys.errors import ConfigError
from recsys.imported.template import FAMILIES, Template


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_put_together_are_the_tokens_of_the_text(family: str, foreign: Example) -> None:
    vocabulary, template = Vocabulary(foreign.model), FAMILIES[family]
    prompt = template.tokenise(vocabulary)
    items = [("<a_1>", "<b_2>", "<c_3>"), ("<a_0>", "<b_0>", "<c_1>")]
    codes = [[vocabulary.token(token) or 0 for token in item] for item in items]
    assert prompt.ids(codes) == template.written(vocabulary, items)


def test_the_prompt_of_minionerec_is_what_its_data_sets_write(foreign: Example) -> None:
    vocabulary = Vocabulary(foreign.model)
    found = FAMILIES["minionerec"].written(vocabulary, [("<a_1>", "<b_2>", "<c_3>"), ("<a_0>", "<b_0>", "<c_1>")])
    instruction = (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request. \n\n### Instruction:\nCan you predict the next possible "
        "item that the user may expect?\n\n"
    )
    question = (
        "### User Input: \nThe user has interacted with items <a_1><b_2><c_3>, <a_0><b_0><c_1> in chronological order. "
        "Can you predict the next possible item that the user may expect?\n\n### Response:\n"
    )
    assert found == vocabulary.ids(instruction) + vocabulary.ids(question)


@given(st.lists(st.lists(st.integers(100, 200), min_size=2, max_size=2), max_size=4))
def test_items_stand_between_their_marks(items: list[list[int]]) -> None:
    ids = PromptTokens((1, 2), (3,), (4,), (5, 6), (7,)).ids(items)
    assert ids[:2] == [1, 2]
    assert ids[-1] == 7
    assert [number for number in ids if number >= 100] == [code for codes in items for code in codes]
    assert ids.count(3) == ids.count(4) == len(items)
    assert ids.count(5) == max(len(items) - 1, 0)


def test_a_file_is_laid_over_the_family(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("prefix: [one, two]\nmax_history: 7\n")
    found = FAMILIES["minionerec"].load(path)
    assert (found.prefix, found.max_history) == (("one", "two"), 7)
    assert found.suffix == FAMILIES["minionerec"].suffix
    path.write_text("prefix: alone\n")
    assert Template().load(path).prefix == ("alone",)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("sufix: x", "template.sufix"),
        ("suffix: 3", "template.suffix"),
        ("prefix: [1]", "template.prefix"),
        ("max_history: 0", "template.max_history"),
        ("start: 1", "template.start"),
        ('pattern: "<{foo}>"', "template.pattern"),
        ('pattern: "<{0}>"', "template.pattern"),
        ('pattern: "<{code"', "template.pattern"),
        ('pattern: "<{code.x}>"', "template.pattern"),
        ("suffix: 2024-99-99", "template"),
        ("- x", "template"),
        ("{", "template"),
    ],
)
def test_bad_templates_are_named(text: str, field: str, tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        Template().load(path)
    assert raised.value.field == field
