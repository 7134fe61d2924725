"""A small language model in the form of other projects, trained on the spot: folder, SID file and work directory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from recsys.backends.prompted import Vocabulary
from recsys.imported.template import FAMILIES
from recsys.records import ITEMS
from recsys.storage import write_json_atomically

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

_STEPS: Final = (1, 1, 1, 2, 2, 5)  # how far the next item of a walk lies
_BRANCH: Final = 4  # codes per level below the first
_LONGEST: Final = 10
_BATCH: Final = 16
_CHAT: Final = ("<|im_start|>", "<|im_end|>", "<|sid_begin|>", "<|sid_end|>")
_END: Final = "<|endoftext|>"
_README: Final = "---\nlicense: apache-2.0\n---\nMade on the spot; of no use but as an example.\n"


@dataclass(frozen=True, slots=True)
class Example:
    """What an import starts from.

    Attributes:
        model: the language model's folder.
        sids: the SID file.
        work: a work directory with other semantic IDs.
    """

    model: Path
    sids: Path
    work: Path


def make_example(
    folder: Path,
    *,
    family: str = "minionerec",
    items: int = 60,
    users: int = 200,
    steps: int = 60,
    width: int = 32,
    seed: int = 0,
) -> Example:
    """Make a catalogue in a ring whose users walk it, and a Qwen3-shaped model that has learned to.

    Args:
        folder: to write to.
        family: a form of `recsys.imported.template.FAMILIES`.
        items: in the catalogue; the last two share a semantic ID.
        users: each with a walk.
        steps: of the model's training.
        width: of the model.
        seed: of walks and weights.
    """
    rng = np.random.default_rng(seed)
    codes = ring_codes(items)
    tokens = [
        [FAMILIES[family].pattern.format(letter="abc"[level], code=code) for level, code in enumerate(row)]
        for row in codes.tolist()
    ]
    example = Example(folder / "model", folder / "example.index.json", folder / "work")
    ids = [f"item-{item:04d}" for item in range(items)]
    example.sids.parent.mkdir(parents=True, exist_ok=True)
    example.sids.write_text(json.dumps(dict(zip(ids, tokens, strict=True))))
    walks = [_walk(rng, items) for _ in range(users)]
    _write_work(example.work, ids, walks)
    _write_tokenizer(example.model, family, sorted({token for row in tokens for token in row}))
    (example.model / "README.md").write_text(_README)
    _train(example.model, family, tokens, [walk[:-2] for walk in walks], steps=steps, width=width, seed=seed)
    return example


def ring_codes(items: int) -> npt.NDArray[np.int64]:
    """(I, 3) semantic IDs: neighbours of the ring share their first codes, the last two items all of them."""
    number = np.minimum(np.arange(items), items - 2)
    return np.stack([number // _BRANCH**2, number // _BRANCH % _BRANCH, number % _BRANCH], axis=1)


def _walk(rng: np.random.Generator, items: int) -> npt.NDArray[np.int64]:
    moves = rng.choice(_STEPS, size=int(rng.integers(4, 2 * _LONGEST)))
    return (int(rng.integers(items)) + np.cumsum(moves)) % items


def _write_tokenizer(directory: Path, family: str, sid_tokens: list[str]) -> None:
    """A byte-level tokenizer trained on the prompt's own texts, with the SID tokens added."""
    template = FAMILIES[family]
    texts = [*template.prefix, template.between, template.suffix]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, initial_alphabet=alphabet, special_tokens=[_END])
    tokenizer.train_from_iterator(texts * 3, trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in (*_CHAT, *sid_tokens)])
    make: Any = PreTrainedTokenizerFast
    wrapped = make(tokenizer_object=tokenizer, eos_token=_END, pad_token=_END)
    wrapped.save_pretrained(str(directory))


def _train(
    directory: Path,
    family: str,
    tokens: list[list[str]],
    walks: list[npt.NDArray[np.int64]],
    *,
    steps: int,
    width: int,
    seed: int,
) -> None:
    """Next items of walks by next-token prediction, as the families' own training does."""
    vocabulary, template = Vocabulary(directory), FAMILIES[family]
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=1024,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=width // 4,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    model: Any = Qwen3ForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rng = np.random.default_rng([seed, 1])
    longer = [walk for walk in walks if len(walk) > 1]
    for _ in range(steps):
        rows = []
        for walk in (longer[place] for place in rng.integers(len(longer), size=_BATCH)):
            end = int(rng.integers(1, len(walk)))
            history = [tokens[item] for item in walk[max(0, end - template.max_history) : end]]
            target = [vocabulary.token(token) for token in tokens[walk[end]]]
            rows.append((template.written(vocabulary, history), target))
        longest = max(len(prompt) + len(target) for prompt, target in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        labels = torch.full_like(ids, -100)
        for row, (prompt, target) in enumerate(rows):
            whole = torch.tensor([*prompt, *target])
            ids[row, : len(whole)] = whole
            labels[row, len(prompt) : len(whole)] = whole[len(prompt) :]
        optimiser.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimiser.step()
    model.save_pretrained(str(directory))


def _write_work(work: Path, ids: list[str], walks: list[npt.NDArray[np.int64]]) -> None:
    """As `windfire offline run` leaves it, without Spark; the semantic IDs are others than the model's."""
    count, indices = len(ids), np.arange(len(ids), dtype=np.int32)
    lengths = np.array([len(walk) for walk in walks])
    counts = np.bincount(np.concatenate([walk[:-2] for walk in walks]), minlength=count)
    rows = [{"item_id": item, "title": f"Title {item}", "price_micros": 1_000_000} for item in ids]
    table = pa.Table.from_pylist(rows, schema=ITEMS)
    table = table.add_column(0, "train_count", pa.array(counts)).add_column(0, "item_index", pa.array(indices))
    users = [f"user-{user:04d}" for user in range(len(walks))]
    near = [(item, (item + step) % count, step - 1, 1.0 / step) for item in range(count) for step in (1, 2)]
    jobs: dict[str, dict[str, Any]] = {
        "sequences": {
            "user_id": users,
            "items": [walk.astype(np.int32) for walk in walks],
            "times": [np.arange(length) for length in lengths],
        },
        "splits": {
            "user_id": users,
            "train_end": pa.array(lengths - 2, pa.int32()),
            "valid_index": pa.array(lengths - 2, pa.int32()),
            "test_index": pa.array(lengths - 1, pa.int32()),
        },
        "text_embeddings": {"item_index": indices, "vector": [np.ones(2, np.float32)] * count},
        "collaborative": {"item_index": indices, "vector": [np.ones(2, np.float32)] * count},
        "semantic_ids": {"item_index": indices, "codes": [[item % 7, item // 7] for item in range(count)]},
        "popularity": {"scene": [""] * count, "item_index": indices, "count": counts},
        "item_to_item": {
            "item_index": pa.array([one for one, _, _, _ in near], pa.int32()),
            "neighbour": pa.array([other for _, other, _, _ in near], pa.int32()),
            "rank": pa.array([rank for _, _, rank, _ in near], pa.int32()),
            "score": [score for _, _, _, score in near],
        },
    }
    for name, made in {"items": table, **{name: pa.table(columns) for name, columns in jobs.items()}}.items():
        (work / name / "data").mkdir(parents=True)
        pq.write_table(made, work / name / "data" / "part-0.parquet")
    write_json_atomically(
        work / "semantic_ids" / "tokenizer.json",
        {"tokenizer_version": "own", "codebook_sizes": [7, count // 7 + 1]},
    )
