"""One request of a Qwen3-0.6B-shaped generator on a GPU: prefill alone, nezha, speculative, beam, flat.

Self-contained on torch and NumPy: copy the file to the machine and run it.

    python decode.py --json figures.json
    python decode.py --tiny --device cpu --json figures.json    # does it run here?

Weights are random: time does not depend on them, but for what the draft holds. Speculation is therefore timed twice:
with every chosen prefix drafted (one forward) and with none (a second forward); what lies between is arithmetic.
Every method is one CUDA graph of fixed shapes, and is timed in an interleaved run.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """Backbone and catalogue; the defaults are Qwen3-0.6B's and those of NEZHA's production (arXiv:2511.18793).

    Attributes:
        layers: decoder blocks.
        width: hidden size H.
        heads: query heads.
        groups: key-value heads.
        head_width: of one head.
        ffn: width of the SwiGLU.
        codes: T of every level.
        levels: L.
        items: leaves of the catalogue.
        beam: prefixes kept per level.
        prompts: tokens of a prompt.
        batches: requests at once.
        rounds: times every method is measured.
    """

    layers: int = 28
    width: int = 1024
    heads: int = 16
    groups: int = 8
    head_width: int = 128
    ffn: int = 3072
    codes: int = 512
    levels: int = 3
    items: int = 10_000_000
    beam: int = 512
    prompts: tuple[int, ...] = (256, 1024, 3000)
    batches: tuple[int, ...] = (1, 8, 32)
    rounds: int = 30


TINY = Shape(
    layers=2, width=32, heads=4, groups=2, head_width=8, ffn=48, codes=8, items=200, beam=6, prompts=(5, 9),
    batches=(1, 3), rounds=3,
)  # fmt: skip


class Catalogue:
    """Random semantic IDs as padded rows of children, on the device.

    Args:
        shape: its sizes.
        generator: of the draw.
        device: where the tensors live.
        gone: share of the items that may not be shown.

    Attributes:
        first: for depth d, (n_d,) int32 the first child of every node; children are numbered in a row.
        code: for depth d, (n_d, widest) int16 the children's codes, -1 behind the last.
        alive: for depth d + 1, (n_{d+1},) bool.
    """

    def __init__(self, shape: Shape, generator: np.random.Generator, device: torch.device, gone: float = 0.01) -> None:
        space = shape.codes**shape.levels
        # codes of complete semantic IDs, ascending: random gaps that add up
        keys = np.unique(generator.integers(0, space, size=int(shape.items * 1.1)))
        keys = np.sort(generator.choice(keys, size=min(shape.items, len(keys)), replace=False))
        alive = generator.random(len(keys)) >= gone
        self.leaves = len(keys)
        self.first: list[Tensor] = []
        self.code: list[Tensor] = []
        self.alive: list[Tensor] = []
        for _ in range(shape.levels):
            parents, parent = np.unique(keys // shape.codes, return_inverse=True)
            degree = np.bincount(parent)
            first = np.concatenate([[0], np.cumsum(degree)[:-1]])
            rows = np.full((len(parents), int(degree.max())), -1, dtype=np.int16)
            rows[parent, np.arange(len(keys)) - first[parent]] = keys % shape.codes
            self.first.insert(0, torch.from_numpy(first.astype(np.int32)).to(device))
            self.code.insert(0, torch.from_numpy(rows).to(device))
            self.alive.insert(0, torch.from_numpy(alive).to(device))
            alive = np.maximum.reduceat(alive, first)
            keys = parents

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(part.nbytes for part in (*self.first, *self.code, *self.alive))


class Beams(NamedTuple):
    """Prefixes kept: nodes (B, M) int64, scores (B, M) float32, parents (B, M) and codes (B, M) int64."""

    nodes: Tensor
    scores: Tensor
    parents: Tensor
    codes: Tensor


def step(catalogue: Catalogue, level: int, beams: Beams, logits: Tensor, width: int) -> Beams:
    """Extend every prefix by one code; softmax over its children, cut over those that are alive; no synchronisation.

    Args:
        catalogue: the children.
        level: 0..L-1.
        beams: (B, M).
        logits: (B, M, T).
        width: prefixes to keep.
    """
    codes = catalogue.code[level][beams.nodes].long()  # (B, M, W)
    exists = codes >= 0
    child = catalogue.first[level][beams.nodes].long()[..., None] + torch.arange(codes.shape[2], device=codes.device)
    values = logits.float().gather(2, codes.clamp(min=0)).masked_fill(~exists, -torch.inf)
    totals = values - values.logsumexp(2, keepdim=True) + beams.scores[..., None]
    shown = exists & catalogue.alive[level][child.clamp(max=len(catalogue.alive[level]) - 1)]
    totals = totals.masked_fill(~shown, -torch.inf).flatten(1)  # (B, M * W)
    scores, at = totals.topk(min(width, totals.shape[1]), dim=1)
    return Beams(
        child.flatten(1).gather(1, at), scores, at // codes.shape[2], codes.flatten(1).gather(1, at).clamp(min=0)
    )


class Cache(NamedTuple):
    """Keys and values per layer, (B, G, m, D)."""

    keys: list[Tensor]
    values: list[Tensor]


class Backbone:
    """A Qwen3-shaped decoder with random weights: pre-norm, grouped queries with normed heads, RoPE, SwiGLU."""

    def __init__(self, shape: Shape, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> None:
        self.shape = shape

        def weight(rows: int, columns: int) -> Tensor:
            drawn = torch.randn(rows, columns, generator=generator, device=device) / math.sqrt(rows)
            return drawn.to(dtype)

        inner = shape.heads * shape.head_width
        both = 2 * shape.groups * shape.head_width
        self.qkv = [weight(shape.width, inner + both) for _ in range(shape.layers)]
        self.out = [weight(inner, shape.width) for _ in range(shape.layers)]
        self.gate_up = [weight(shape.width, 2 * shape.ffn) for _ in range(shape.layers)]
        self.down = [weight(shape.ffn, shape.width) for _ in range(shape.layers)]
        self.tokens = weight(shape.levels * shape.codes + shape.levels, shape.width)  # codes, then placeholders
        half = shape.head_width // 2
        rate = 1e6 ** -(torch.arange(half, device=device, dtype=torch.float64) / half)
        place = torch.arange(max(shape.prompts) + 2 * shape.levels + 2, device=device, dtype=torch.float64)
        angle = place[:, None] * rate  # (positions, D / 2)
        self.cos, self.sin = angle.cos().to(dtype), angle.sin().to(dtype)

    def __call__(
        self, x: Tensor, positions: Tensor, cache: Cache | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Cache]:
        """States of new tokens.

        Args:
            x: (B, k, H) embedded.
            positions: (k,).
            cache: of m tokens before them.
            mask: (B or 1, 1, k, m + k) bool; None = causal, without a cache.

        Returns:
            (B, k, H) normed states, and the keys and values of all tokens.
        """
        shape = self.shape
        grown = Cache([], [])
        batch, count, _ = x.shape
        inner, each = shape.heads * shape.head_width, shape.groups * shape.head_width
        cos, sin = self.cos[positions], self.sin[positions]
        for layer in range(shape.layers):
            mixed = _normed(x) @ self.qkv[layer]
            q, k, v = torch.split(mixed, [inner, each, each], dim=-1)
            q = _turned(_normed(_heads(q, batch, count, shape.heads)), cos, sin)
            k, v = (
                _turned(_normed(_heads(k, batch, count, shape.groups)), cos, sin),
                _heads(v, batch, count, shape.groups),
            )
            if cache is not None:
                k, v = torch.cat([cache.keys[layer], k], dim=2), torch.cat([cache.values[layer], v], dim=2)
            grown.keys.append(k)
            grown.values.append(v)
            if mask is None:
                found = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            else:  # the fused kernels take a mask or grouped queries, not both
                wide_k, wide_v = (part.repeat_interleave(shape.heads // shape.groups, dim=1) for part in (k, v))
                found = F.scaled_dot_product_attention(q, wide_k, wide_v, mask)
            x = x + found.transpose(1, 2).reshape(batch, count, inner) @ self.out[layer]
            gate, up = (_normed(x) @ self.gate_up[layer]).chunk(2, dim=-1)
            x = x + (F.silu(gate) * up) @ self.down[layer]
        return _normed(x), grown

    def embed(self, level: int, codes: Tensor) -> Tensor:
        """Codes (...) of a level -> (..., H)."""
        return self.tokens[level * self.shape.codes + codes]

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        parts = [*self.qkv, *self.out, *self.gate_up, *self.down, self.tokens]
        return sum(part.nbytes for part in parts)


def _heads(x: Tensor, batch: int, count: int, heads: int) -> Tensor:
    return x.view(batch, count, heads, -1).transpose(1, 2)


def _normed(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


class Head:
    """NEZHA's draft head (its section 1.4 with the RNN cell), the input half of a cell tabled per code."""

    def __init__(self, shape: Shape, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> None:
        def weight(rows: int, columns: int) -> Tensor:
            return (torch.randn(rows, columns, generator=generator, device=device) / math.sqrt(rows)).to(dtype)

        self.outputs = [weight(shape.width, shape.codes) for _ in range(shape.levels)]
        self.inputs = [weight(shape.codes, shape.width) for _ in range(shape.levels - 1)]  # E_l W_ih
        self.recurrent = [weight(shape.width, shape.width) for _ in range(shape.levels - 1)]

    def advance(self, level: int, state: Tensor, beams: Beams) -> Tensor:
        """States (B, M, H) of the parents -> (B, M', H)."""
        own = state.gather(1, beams.parents[..., None].expand(-1, -1, state.shape[2]))
        return torch.tanh(self.inputs[level][beams.codes] + own @ self.recurrent[level])


class Methods:
    """What is timed; every method takes token ids (B, n) and gives nodes and scores (B, K).

    Args:
        shape: sizes.
        seed: of weights and catalogue.
        device: to run on.
        dtype: of weights and states.
        vectors: whether to draw the item vectors of `flat`, I * H numbers.
    """

    def __init__(
        self, shape: Shape, *, seed: int, device: torch.device, dtype: torch.dtype, vectors: bool = True
    ) -> None:
        generator = torch.Generator(device=device).manual_seed(seed)
        self.shape, self.device, self.dtype = shape, device, dtype
        self.catalogue = Catalogue(shape, np.random.default_rng(seed), device)
        self.backbone = Backbone(shape, generator, device, dtype)
        self.head = Head(shape, generator, device, dtype)
        self.outputs = self.head.outputs  # the backbone writes through the same matrices
        self.items = None
        if vectors:
            self.items = torch.empty(self.catalogue.leaves, shape.width, device=device, dtype=dtype)
            self.items.normal_(generator=generator)

    def prefill(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The prompt alone: the newest state, twice."""
        hidden, _ = self._read(ids)
        return hidden[:, -1], hidden[:, -1]

    def nezha(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Prompt and placeholders in one forward, then a beam over the draft head."""
        hidden = self._read_with_placeholders(ids)[0][:, -1 - self.shape.levels :]  # (B, L + 1, H)
        beams = self._draft(hidden, self._root(len(ids)), self.shape.beam)[-1]
        return beams.nodes, beams.scores

    def beam(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Exact constrained beam; the prompt's keys are shared, beams are tokens of one sequence under a tree mask."""
        hidden, cache = self._read(ids)
        state, beams = hidden[:, -1:], self._root(len(ids))
        seen = torch.ones(len(ids), 1, ids.shape[1], dtype=torch.bool, device=self.device)  # (B, M, m)
        for level in range(self.shape.levels):
            if level:
                count = beams.nodes.shape[1]
                inherited = seen.expand(-1, max(seen.shape[1], 1), -1).gather(
                    1, beams.parents[..., None].expand(-1, -1, seen.shape[2])
                )
                own = torch.eye(count, dtype=torch.bool, device=self.device).expand(len(ids), -1, -1)
                seen = torch.cat([inherited, own], dim=2)
                place = torch.full((count,), ids.shape[1] + level - 1, device=self.device)
                state, cache = self.backbone(self.backbone.embed(level - 1, beams.codes), place, cache, seen[:, None])
            beams = step(self.catalogue, level, beams, state @ self.outputs[level], self.shape.beam)
        return beams.nodes, beams.scores

    def speculative(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """As `beam`, the prefixes of two codes drafted by the head: one forward where all of them are found."""
        return self._verified(ids, repair=False)

    def speculative_repaired(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """As `speculative`, and a second forward over every chosen prefix of two codes: `beam`'s answer in any case."""
        return self._verified(ids, repair=True)

    def flat(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The newest state against every item: the exact dot product and the best K."""
        hidden, _ = self._read(ids)
        items = self.items
        if items is None:
            raise SystemExit("flat needs the item vectors: --no-flat leaves the method out")
        totals = hidden[:, -1] @ items.T  # (B, I)
        totals = totals.masked_fill(~self.catalogue.alive[-1], -torch.inf)
        scores, nodes = totals.topk(min(self.shape.beam, totals.shape[1]), dim=1)
        return nodes, scores

    def _verified(self, ids: Tensor, *, repair: bool) -> tuple[Tensor, Tensor]:
        if self.shape.levels != 3:
            raise SystemExit("speculation is laid out for three levels")
        batch, prompt = ids.shape
        hidden, cache = self._read_with_placeholders(ids)
        states = hidden[:, -1 - self.shape.levels :]
        first = step(self.catalogue, 0, self._root(batch), states[:, :1] @ self.outputs[0], self.shape.beam)
        drafted = self._draft(states, first, self.shape.beam, begin=1)[0]
        # one forward: the first level's prefixes, and behind them the drafted ones
        one, two = first.nodes.shape[1], drafted.nodes.shape[1]
        seen = torch.zeros(
            batch, one + two, prompt + self.shape.levels + one + two, dtype=torch.bool, device=self.device
        )
        seen[:, :, :prompt] = True
        seen[:, :, prompt + self.shape.levels :] = torch.eye(one + two, dtype=torch.bool, device=self.device)
        above = prompt + self.shape.levels + drafted.parents  # (B, two)
        seen[:, one:].scatter_(2, above[..., None], value=True)
        tokens = torch.cat([self.backbone.embed(0, first.codes), self.backbone.embed(1, drafted.codes)], dim=1)
        place = prompt + torch.cat([torch.zeros(one, device=self.device), torch.ones(two, device=self.device)]).long()
        found, cache = self.backbone(tokens, place, cache, seen[:, None])
        second = step(self.catalogue, 1, first, found[:, :one] @ self.outputs[1], self.shape.beam)
        known = drafted.nodes.where(
            drafted.scores > -torch.inf, len(self.catalogue.first[2])
        )  # what fills rows is none
        order = known.argsort(dim=1)
        at = torch.searchsorted(known.gather(1, order), second.nodes).clamp(max=two - 1)
        state = found[:, one:].gather(1, order.gather(1, at)[..., None].expand(-1, -1, found.shape[2]))
        if repair:
            count = second.nodes.shape[1]
            behind = torch.zeros(batch, count, seen.shape[2] + count, dtype=torch.bool, device=self.device)
            behind[:, :, :prompt] = True
            behind.scatter_(2, (prompt + self.shape.levels + second.parents)[..., None], value=True)
            behind[:, :, seen.shape[2] :] = torch.eye(count, dtype=torch.bool, device=self.device)
            later = torch.full((count,), prompt + 1, device=self.device)
            state, _ = self.backbone(self.backbone.embed(1, second.codes), later, cache, behind[:, None])
        third = step(self.catalogue, 2, second, state @ self.outputs[2], self.shape.beam)
        return third.nodes, third.scores

    def _draft(self, hidden: Tensor, beams: Beams, width: int, begin: int = 0) -> list[Beams]:
        """Beams of the head, one per level from `begin`; hidden (B, L + 1, H)."""
        state, kept = hidden[:, :1], []
        for level in range(begin, self.shape.levels):
            if level:
                state = self.head.advance(level - 1, state.expand(-1, max(state.shape[1], 1), -1), beams)
            logits = (hidden[:, level + 1 : level + 2] + state) @ self.head.outputs[level]
            beams = step(self.catalogue, level, beams, logits, width)
            kept.append(beams)
        return kept

    def _read(self, ids: Tensor) -> tuple[Tensor, Cache]:
        return self.backbone(self.backbone.tokens[ids], torch.arange(ids.shape[1], device=self.device))

    def _read_with_placeholders(self, ids: Tensor) -> tuple[Tensor, Cache]:
        extra = torch.arange(self.shape.levels, device=self.device) + self.shape.levels * self.shape.codes
        return self._read(torch.cat([ids, extra.expand(len(ids), -1)], dim=1))

    def _root(self, batch: int) -> Beams:
        zero = torch.zeros(batch, 1, dtype=torch.int64, device=self.device)
        return Beams(zero, torch.zeros(batch, 1, device=self.device), zero, zero)


def captured(call: Callable[[Tensor], tuple[Tensor, Tensor]], ids: Tensor, pool: Any) -> Callable[[], object]:
    """A call as one CUDA graph whose memory is that of the other graphs of the pool; as it is without a pool."""
    if pool is None:
        return lambda: call(ids)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call(ids)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.empty_cache()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        answer = call(ids)

    def replay() -> object:
        graph.replay()
        return answer

    return replay


def timed(calls: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds of every call in every round, the order drawn anew each time."""
    order = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name in order.permutation(list(calls)):
            _wait(device)
            started = time.perf_counter()
            calls[name]()
            _wait(device)
            times[name].append(1000 * (time.perf_counter() - started))
    return times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def figures(
    shape: Shape, *, seed: int, device: torch.device, dtype: torch.dtype, flat: bool
) -> Iterator[dict[str, object]]:
    """One row per prompt, batch and method: milliseconds, and the ratio of the medians to the prefill's."""
    methods = Methods(shape, seed=seed, device=device, dtype=dtype, vectors=flat)
    names = ["prefill", "nezha", "speculative", "speculative_repaired", "beam", *(["flat"] if flat else [])]
    draw = torch.Generator(device=device).manual_seed(seed)
    held = {"backbone": methods.backbone.nbytes / _GIB, "verifier": methods.catalogue.nbytes / _GIB}
    yield {"gib": held, "verifier_bytes_per_item": methods.catalogue.nbytes / methods.catalogue.leaves}
    for prompt in shape.prompts:
        for batch in shape.batches:
            ids = torch.randint(shape.levels * shape.codes, (batch, prompt), generator=draw, device=device)
            with torch.inference_mode():
                pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
                calls = {name: captured(getattr(methods, name), ids, pool) for name in names}
                times = timed(calls, shape.rounds, device)
            base = float(np.median(times["prefill"]))
            for name, found in times.items():
                low, high, highest = np.percentile(found, [50, 95, 99])
                yield {
                    "prompt": prompt, "batch": batch, "method": name, "p50_ms": low, "p95_ms": high, "p99_ms": highest,
                    "over_prefill": low / base,
                }  # fmt: skip
            del calls


def main(arguments: list[str] | None = None) -> int:
    """Run and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32", "float64"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--items", type=int, help="leaves of the catalogue")
    parser.add_argument("--tiny", action="store_true", help="sizes that run anywhere")
    parser.add_argument("--no-flat", action="store_true", help="leave out the item vectors: 19 GiB at the full size")
    chosen = parser.parse_args(arguments)
    shape = TINY if chosen.tiny else Shape()
    if chosen.items is not None:
        shape = replace(shape, items=chosen.items)
    device = torch.device(chosen.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.stderr.write("no GPU here: --device cpu --tiny shows whether the script runs\n")
        return 2
    rows = list(
        figures(shape, seed=chosen.seed, device=device, dtype=getattr(torch, chosen.dtype), flat=not chosen.no_flat)
    )
    about = {
        "shape": asdict(shape),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "dtype": chosen.dtype,
        "seed": chosen.seed,
        "torch": torch.__version__,
        "command": " ".join(sys.argv),
    }
    chosen.json.write_text(json.dumps({"about": about, "figures": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
