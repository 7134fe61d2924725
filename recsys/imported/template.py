"""Prompt templates: the text around a history, tokenised once."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final

import yaml

from recsys.backends.prompted import PromptTokens
from recsys.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from recsys.backends.prompted import Vocabulary


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt's texts: prefix, then items divided by `between`, then suffix.

    Attributes:
        prefix: texts before the history; each was tokenised by itself in training.
        before: in front of every item's tokens.
        behind: behind them.
        between: from one item to the next.
        suffix: behind the history, up to where the semantic ID begins.
        start: whether the tokenizer's start token (where it has one) comes first.
        pattern: of a code's token, for SID files that hold numbers.
        max_history: newest items of a history that the prompt holds.
    """

    prefix: tuple[str, ...] = ()
    before: str = ""
    behind: str = ""
    between: str = ""
    suffix: str = ""
    start: bool = False
    pattern: str = "<{letter}_{code}>"
    max_history: int = 20

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {one.name: getattr(self, one.name) for one in fields(self)} | {"prefix": list(self.prefix)}

    def load(self, path: Path) -> Template:
        """These settings with those of a YAML file over them.

        Raises:
            ConfigError: not YAML, an unknown field, or one of a wrong type.
        """
        try:
            values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: bytes, dates
            raise ConfigError(f"the template cannot be read: {error}", field="template", value=str(path)) from error
        if not isinstance(values, dict):
            raise ConfigError("a template is a mapping", field="template", value=values)
        chosen: dict[str, Any] = {}
        for name, value in values.items():
            chosen[name] = self._checked(name, value)
        return replace(self, **chosen)

    def _checked(self, name: str, value: Any) -> Any:
        if name not in {one.name for one in fields(self)}:
            raise ConfigError(
                "unknown field of a template", field=f"template.{name}", value=value, remedy="see docs/import_model.md"
            )
        if name == "prefix":
            value = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
            if isinstance(value, tuple) and all(isinstance(text, str) for text in value):
                return value
        elif type(value) is type(getattr(self, name)) and (name != "max_history" or value >= 1):
            if name == "pattern":
                _check_pattern(value)
            return value
        raise ConfigError("not a value of this field", field=f"template.{name}", value=value)

    def tokenise(self, vocabulary: Vocabulary) -> PromptTokens:
        """The texts as token ids."""
        start = [vocabulary.start] if self.start and vocabulary.start is not None else []
        return PromptTokens(
            prefix=(*start, *(number for text in self.prefix for number in vocabulary.ids(text))),
            before=tuple(vocabulary.ids(self.before)),
            behind=tuple(vocabulary.ids(self.behind)),
            between=tuple(vocabulary.ids(self.between)),
            suffix=tuple(vocabulary.ids(self.suffix)),
        )

    def written(self, vocabulary: Vocabulary, items: Sequence[Sequence[str]]) -> list[int]:
        """The tokens of the prompt written out for a history, as training made them."""
        history = self.between.join(self.before + "".join(tokens) + self.behind for tokens in items)
        *first, last = self.prefix or ("",)
        start = [vocabulary.start] if self.start and vocabulary.start is not None else []
        return [
            *start,
            *(number for text in first for number in vocabulary.ids(text)),
            *vocabulary.ids(last + history + self.suffix),
        ]


def _check_pattern(pattern: str) -> None:
    try:
        pattern.format(letter="a", code=0)
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            "the pattern cannot be filled in",
            field="template.pattern",
            value=pattern,
            remedy="its only placeholders are {letter} and {code}",
        ) from error


_PREDICT: Final = "Can you predict the next possible item that the user may expect?"

FAMILIES: Final[dict[str, Template]] = {
    # instruction and input are tokenised apart in its data sets; histories hold at most ten items there
    "minionerec": Template(
        prefix=(
            (
                "Below is an instruction that describes a task, paired with an input that provides further context. "
                f"Write a response that appropriately completes the request. \n\n### Instruction:\n{_PREDICT}\n\n"
            ),
            "### User Input: \nThe user has interacted with items ",
        ),
        between=", ",
        suffix=f" in chronological order. {_PREDICT}\n\n### Response:\n",
        start=True,
        max_history=10,
    ),
    # chat form; the user's text differs from task to task there: give your own
    "openonerec": Template(
        prefix=("<|im_start|>user\n",),
        before="<|sid_begin|>",
        behind="<|sid_end|>",
        suffix="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n<|sid_begin|>",
        pattern="<s_{letter}_{code}>",
        max_history=50,
    ),
    # NEZHA's own: nothing but semantic IDs; a start token must make the empty prompt
    "huggingface": Template(start=True),
}
