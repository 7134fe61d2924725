"""One trained Qwen3 backbone, and two directories that vLLM loads: with our draft head, and as a language model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn

from benchmarks.decoding_methods import catalogue
from recsys.backends import choose_backbone
from recsys.backends.huggingface import HuggingFaceBackbone
from recsys.backends.vllm_export import decoder_config
from recsys.backends.vllm_format import START
from recsys.decoding.trie import SidTrie
from recsys.models import ItemFeatures, RecommenderConfig, TokenRecommender
from recsys.models.normaliser import Normaliser
from recsys.storage import write_json_atomically
from training.recommender.objectives import draft_loss

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from benchmarks.vllm import VllmSettings

    Items = npt.NDArray[np.int64]

_WINDOW: Final = 20  # items of a training window
_NEAR: Final = 12  # a walk goes to one of this many neighbours in the order of semantic IDs
_RATE: Final = 2e-3
_CLIP: Final = 1.0


@dataclass(frozen=True, slots=True)
class Trained:
    """What both servers run.

    Attributes:
        model: ours; it reads nothing of an item but its codes.
        features: of the catalogue.
        trie: over it.
        output: the language model's output layer over the start, all codes and an end.
    """

    model: TokenRecommender
    features: ItemFeatures
    trie: SidTrie
    output: nn.Linear

    @property
    def first(self) -> list[int]:
        """The language model's first token of each level."""
        return first_tokens(self.model.config.codebook_sizes)


def first_tokens(sizes: tuple[int, ...]) -> list[int]:
    """The start is token 0; then every level's codes."""
    return [START + 1 + sum(sizes[:level]) for level in range(len(sizes))]


class Walks:
    """Histories: mostly from an item to a near one in the order of semantic IDs, sometimes to any.

    Args:
        codes: (I, L) semantic IDs.
        jump: share of steps to any item.
    """

    def __init__(self, codes: npt.NDArray[np.integer], jump: float) -> None:
        self._order = np.lexsort(codes.T[::-1])
        self._jump = jump

    def draw(self, rng: np.random.Generator, count: int, length: int) -> Items:
        """(count, length) item indices."""
        items = len(self._order)
        step = rng.integers(1, _NEAR + 1, size=(count, length))
        jump = rng.random((count, length)) < self._jump
        step[jump] = rng.integers(items, size=int(jump.sum()))
        walks: Items = self._order[(rng.integers(items, size=(count, 1)) + step.cumsum(axis=1)) % items]
        return walks


def train(settings: VllmSettings) -> Trained:
    """Train backbone, head and the language model's output together.

    The head learns as always, over the children in the trie; the language model as any, by a softmax over all tokens.
    """
    rng = np.random.default_rng(settings.seed)
    codes = catalogue(settings, rng)
    sizes = tuple(settings.codebooks)
    none = np.zeros((settings.items, 0), dtype=np.float32)
    features = ItemFeatures(codes, none, none, np.ones(settings.items, np.int64))
    config = RecommenderConfig(
        sizes, settings.items, 0, 0, shape="token", use_item_id=False, d_model=settings.d_model,
        layers=settings.layers, heads=settings.heads, max_history=settings.history, dropout=0.0, drop_id=0.0,
        backbone="huggingface",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = TokenRecommender(config, features, choose_backbone)
        output = nn.Linear(config.d_model, 2 + sum(sizes), bias=False)
    trie = SidTrie.build(codes, sizes)
    trained = Trained(model, features, trie, output)
    _fit(trained, Normaliser(trie), Walks(codes, settings.jump), settings, rng)
    model.eval()
    return trained


def _fit(
    trained: Trained, normaliser: Normaliser, walks: Walks, settings: VllmSettings, rng: np.random.Generator
) -> None:
    model, output = trained.model, trained.output
    first = torch.tensor(trained.first)
    parameters = [*model.parameters(), *output.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=settings.steps)
    for _ in range(settings.steps):
        items = torch.from_numpy(walks.draw(rng, settings.windows, _WINDOW))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = model.states(items, None)
            chosen = items.flatten()
            loss = draft_loss(model, normaliser, states.head.flatten(0, 1), chosen, None)
            logits = output(states.backbone.flatten(0, 2))  # (N * L, V)
        tokens = (model.input.codes[chosen] + first).flatten()
        loss = loss + F.cross_entropy(logits.float(), tokens, reduction="sum")
        optimiser.zero_grad()
        (loss / len(chosen)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
        optimiser.step()
        schedule.step()


def export_language_model(trained: Trained, out: Path) -> None:
    """Write the same backbone as an ordinary Qwen3 language model over code tokens, with a tokenizer of its own.

    vLLM's beam search asks for a tokenizer even where prompts are token ids; token n is the word `t<n>`.
    """
    model = trained.model
    backbone: Any = model.backbone
    assert isinstance(backbone, HuggingFaceBackbone)  # noqa: S101 - `train` made it
    size = trained.output.out_features
    end = size - 1
    weights = {f"model.{name}": value for name, value in backbone.decoder.state_dict().items()}
    tables = [table.get_parameter("weight") for table in model.input.code_embedding]
    weights["model.embed_tokens.weight"] = torch.cat([model.start[None], *tables, torch.zeros(1, model.config.d_model)])
    weights["lm_head.weight"] = trained.output.weight
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().contiguous().clone() for name, value in weights.items()}, out / "model.safetensors")
    own = {"architectures": ["Qwen3ForCausalLM"], "eos_token_id": end}
    write_json_atomically(out / "config.json", decoder_config(model, size) | own)
    tokenizer = Tokenizer(WordLevel({f"t{token}": token for token in range(size)}, unk_token="t0"))  # noqa: S106 - a word
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(out / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": f"t{end}", "unk_token": "t0"}
    (out / "tokenizer_config.json").write_text(json.dumps(names))
