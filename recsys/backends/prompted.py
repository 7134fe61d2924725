"""Language models in Hugging Face's form as the backbone of `recsys.models.prompted`; from local folders only."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, DynamicLayer
from transformers.utils import logging

from recsys.backends.huggingface import LibraryDecoder
from recsys.errors import ConfigError, DataError
from recsys.models.prompted import CodeRows, PromptedRecommender, PromptPieces

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from recsys.models import RecommenderConfig

Precision = Literal["float32", "bfloat16"]

_UNUSED: Final = -1
_TYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """A prompt's texts as token ids: prefix, then items divided by `between`, then suffix.

    Attributes:
        prefix: before the history.
        before: in front of every item's codes.
        behind: behind them.
        between: from one item to the next.
        suffix: behind the history.
    """

    prefix: tuple[int, ...] = ()
    before: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()

    def ids(self, items: Sequence[Sequence[int]]) -> list[int]:
        """The whole prompt for a history, given as its items' code tokens."""
        found = [*self.prefix]
        for place, codes in enumerate(items):
            found += [*(self.between if place else ()), *self.before, *codes, *self.behind]
        return [*found, *self.suffix]


class Shape(NamedTuple):
    """What a language model's configuration says of its size."""

    width: int
    layers: int
    positions: int | None
    model_type: str


class Vocabulary:
    """A folder's tokenizer.

    Args:
        directory: with tokenizer.json and its companions.

    Raises:
        DataError: there is none that can be read.
    """

    def __init__(self, directory: Path) -> None:
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # a foreign file may fail in any way
            raise DataError(
                f"the tokenizer cannot be read: {error}",
                field="model",
                value=str(directory),
                remedy="give the folder that `save_pretrained` of model and tokenizer wrote",
            ) from error
        self._ids: dict[str, int] = self._tokenizer.get_vocab()

    @property
    def start(self) -> int | None:
        """The token that begins a text, where the family has one."""
        found: int | None = self._tokenizer.bos_token_id
        return found

    def token(self, text: str) -> int | None:
        """The id of a token; None where the vocabulary lacks it."""
        return self._ids.get(text)

    def ids(self, text: str) -> list[int]:
        """A text's tokens, without what the tokenizer adds by itself."""
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return found


def read_shape(directory: Path) -> Shape:
    """Read a language model's config.json.

    Raises:
        DataError: it cannot be read, or describes no decoder.
    """
    try:
        config: Any = AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
        return Shape(
            int(config.hidden_size),
            int(config.num_hidden_layers),
            getattr(config, "max_position_embeddings", None),
            str(config.model_type),
        )
    except Exception as error:
        raise DataError(
            f"config.json describes no decoder that transformers knows: {error}",
            field="model",
            value=str(directory),
            remedy="a causal language model, such as qwen2, qwen3 or llama; code of its own is not run",
        ) from error


def load_prompted(
    directory: Path,
    config: RecommenderConfig,
    *,
    codes: npt.NDArray[np.integer],
    prompt: PromptTokens,
    code_tokens: Sequence[Sequence[int]],
    precision: str,
) -> PromptedRecommender:
    """Load a language model, in evaluation mode and without gradients; its head is not fitted yet.

    Args:
        directory: weights as safetensors and config.json.
        config: of shape `token` with the model's width.
        codes: (I, L) semantic IDs.
        prompt: as token ids.
        code_tokens: per level (T_l,) the code's token id, -1 where no item has the code.
        precision: `float32` or `bfloat16`.

    Raises:
        ConfigError: an unknown precision.
        DataError: the model cannot be loaded, or is no decoder with full attention in every layer.
    """
    return prompted_from(load_causal(directory, precision), config, codes=codes, prompt=prompt, code_tokens=code_tokens)


def prompted_from(
    model: Any,
    config: RecommenderConfig,
    *,
    codes: npt.NDArray[np.integer],
    prompt: PromptTokens,
    code_tokens: Sequence[Sequence[int]],
) -> PromptedRecommender:
    """Take a loaded language model apart; it is of no use by itself afterwards. Arguments as `load_prompted`."""
    words = model.get_input_embeddings().weight.detach()  # (V, H)
    head = model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    rows = [_code_rows(words, head.weight.detach(), bias, torch.tensor(level)) for level in code_tokens]
    pieces = PromptPieces(*(words[list(part)] for part in _parts(prompt)))
    decoder = model.base_model
    decoder.set_input_embeddings(torch.nn.Identity())
    backbone = LibraryDecoder(decoder, additive=False)
    made = PromptedRecommender(config, torch.from_numpy(codes.astype("int64")), pieces, rows, backbone)
    backbone.requires_grad_(requires_grad=False)
    return made.eval()


def load_causal(directory: Path, precision: str) -> Any:
    """The language model as the library has it, in evaluation mode.

    Raises:
        ConfigError: an unknown precision.
        DataError: it cannot be loaded, or is no decoder with full attention in every layer.
    """
    if precision not in get_args(Precision):
        raise ConfigError(
            "no such precision", field="precision", value=precision, remedy=f"one of {', '.join(get_args(Precision))}"
        )
    try:
        with _without_bars():
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(directory),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=_TYPES[precision],
                attn_implementation="sdpa",
            )
        full = all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
    except Exception as error:  # a foreign model may fail in any way
        raise DataError(
            f"transformers cannot load the language model: {error}",
            field="model",
            value=str(directory),
            remedy="a causal language model with weights as safetensors (`save_pretrained` writes them)",
        ) from error
    if not full:
        raise DataError(
            "the language model does not attend to the whole prompt in every layer",
            field="model",
            value=str(directory),
            remedy="a model without sliding windows, such as qwen2, qwen3 or llama",
        )
    return model.eval()


@contextmanager
def _without_bars() -> Iterator[None]:
    """The library draws bars into the server's log unless told not to."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _parts(prompt: PromptTokens) -> tuple[tuple[int, ...], ...]:
    return prompt.prefix, prompt.before, prompt.behind, prompt.between, prompt.suffix


def _code_rows(words: Tensor, outputs: Tensor, bias: Tensor | None, tokens: Tensor) -> CodeRows:
    used = torch.where(tokens == _UNUSED, tokens.max(), tokens)  # nobody asks for an unused code
    return CodeRows(words[used], outputs[used], None if bias is None else bias.detach()[used])
