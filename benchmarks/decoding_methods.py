"""What the decoding benchmark times: one request by every method, over one catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import torch

from recsys.backends import choose_engine
from recsys.decoding.beam import BeamDecoder
from recsys.decoding.eligibility import Eligibility
from recsys.decoding.flat import FlatDecoder
from recsys.decoding.histories import pad_histories
from recsys.decoding.nezha import NezhaDecoder
from recsys.decoding.ragged import best
from recsys.decoding.verifier import finding
from recsys.models import CompactRecommender, FlatRecommender, ItemFeatures, RecommenderConfig, TokenRecommender

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from benchmarks.decoding_settings import BackboneSettings, DecodingSettings
    from recsys.decoding.decoder import Decoder
    from recsys.decoding.trie import SidTrie

    History = npt.NDArray[np.int32]
    Call = Callable[[History], Any]

_WRITERS: Final[dict[str, type[CompactRecommender | TokenRecommender]]] = {
    "compact": CompactRecommender,
    "token": TokenRecommender,
}
ENGINES: Final = ("torch_bf16", "onnx", "onnx_int8")  # beside torch
_TEXT: Final = 384  # width of the packaged text encoder
_COLLABORATIVE: Final = 128


class Skewed(Protocol):
    """How a catalogue is drawn; see `DecodingSettings`."""

    @property
    def items(self) -> int:
        """I."""

    @property
    def codebooks(self) -> list[int]:
        """T_1..T_L."""

    @property
    def skew(self) -> list[float]:
        """Per level the exponent of the code frequencies."""


def catalogue(settings: Skewed, rng: np.random.Generator) -> npt.NDArray[np.int32]:
    """(I, L) semantic IDs; see `draw_codes`."""
    return draw_codes(settings.items, settings.codebooks, settings.skew, rng)


def draw_codes(
    items: int, sizes: Sequence[int], skew: Sequence[float], rng: np.random.Generator
) -> npt.NDArray[np.int32]:
    """(I, L) semantic IDs; the codes of a level have Zipf frequencies, shifted by the code before."""
    codes = np.zeros((items, len(sizes)), dtype=np.int32)
    shift = np.zeros(items, dtype=np.int64)
    for level, (size, exponent) in enumerate(zip(sizes, skew, strict=True)):
        weight = np.arange(1, size + 1) ** -exponent
        drawn = rng.choice(size, size=items, p=weight / weight.sum())
        codes[:, level] = (drawn + shift) % size
        shift = codes[:, level].astype(np.int64) * 37  # any odd stride: other prefixes prefer other codes
    return codes


def methods(
    backbone: BackboneSettings, settings: DecodingSettings, codes: npt.NDArray[np.int32], trie: SidTrie, beam: int
) -> dict[str, Call]:
    """Every method of one backbone at one beam width; each takes a history and answers it wholly.

    `prefill` is the backbone over the history alone. `flat` is the trunk of the same sizes over one position per item.
    A method whose name ends in an engine's has its forwards from that engine, one without from torch.
    """
    rng = np.random.default_rng(settings.seed)
    features = ItemFeatures(
        codes,
        rng.standard_normal((settings.items, _TEXT)).astype(np.float32),
        rng.standard_normal((settings.items, _COLLABORATIVE)).astype(np.float32),
        np.ones(settings.items, np.int64),
    )
    calls: dict[str, Call] = {}
    decoders: dict[str, Decoder] = {}
    for engine in ("torch", *ENGINES):
        ending = "" if engine == "torch" else f"_{engine}"
        torch.manual_seed(settings.seed)  # every engine runs the same weights
        model = _WRITERS[backbone.shape](_config(backbone, settings, backbone.shape), features).eval()
        flat = FlatRecommender(_config(backbone, settings, "flat"), features).eval()
        for one in (model, flat):
            one.freeze(choose_engine(engine, one.config))
        calls[f"prefill{ending}"] = _prefill(model)
        decoders[f"nezha{ending}"] = NezhaDecoder(model, trie)
        decoders[f"flat{ending}"] = FlatDecoder(flat)
        if engine == "torch":
            calls["nezha_posthoc"] = PostHoc(model, trie, beam)
            decoders["nezha_bitmap"] = NezhaDecoder(model, trie, structure="bitmap")
            decoders["nezha_sorted_keys"] = NezhaDecoder(model, trie, structure="sorted_keys")
            if isinstance(model, TokenRecommender):
                decoders["beam"] = BeamDecoder(model, trie)
    return calls | {name: _whole(decoder, beam, settings.answer) for name, decoder in decoders.items()}


def _config(backbone: BackboneSettings, settings: DecodingSettings, shape: str) -> RecommenderConfig:
    sizes = {"codebook_sizes": settings.codebooks, "num_items": settings.items}
    widths = {"text_dim": _TEXT, "collaborative_dim": _COLLABORATIVE}
    chosen = {"shape": shape, "item_rows": shape == "compact"}
    return RecommenderConfig.from_dict(backbone.model_dump() | chosen | sizes | widths)


def _prefill(model: CompactRecommender | TokenRecommender) -> Call:
    def call(history: History) -> torch.Tensor:
        items, lengths = pad_histories([history], items=model.config.num_items)
        with torch.inference_mode():
            if isinstance(model, TokenRecommender):
                return model.read(items, lengths)
            return model.encode(items, lengths)

    return call


def _whole(decoder: Decoder, beam: int, answer: int) -> Call:
    everything = Eligibility()
    k = min(beam, answer)
    return lambda history: decoder.decode([history], k=k, beam=beam, eligibility=everything)


class PostHoc:
    """The flow of the released NEZHA: softmax over whole codebooks, cut to the beam, and only then set membership.

    Args:
        model: with a draft head.
        trie: the catalogue.
        beam: prefixes kept per level, before those that do not exist are dropped.
    """

    def __init__(self, model: CompactRecommender | TokenRecommender, trie: SidTrie, beam: int) -> None:
        self._model, self._verifiers, self._beam = model, finding(trie), beam

    @torch.inference_mode()
    def __call__(self, history: History) -> npt.NDArray[np.int64]:
        """(m,) leaves, best first; m may be far below the beam."""
        head = self._model.head
        padded = pad_histories([history], items=self._model.config.num_items)
        hidden = self._model.encode(*padded)  # (1, L + 1, H)
        state, scores, nodes = head.start(hidden), torch.zeros(1), np.zeros(1, dtype=np.int64)
        for level, verifier in enumerate(self._verifiers):
            logits = head.logits(level, hidden.expand(len(state), -1, -1), state)  # (M, T)
            totals = (logits.log_softmax(dim=1) + scores[:, None]).flatten()
            chosen = best(totals.numpy(), self._beam)
            parent, codes = np.divmod(chosen, logits.shape[1])
            found = verifier.find(nodes[parent], codes)
            exists = found >= 0
            nodes, chosen = found[exists], chosen[exists]
            scores = totals[torch.from_numpy(chosen)]
            if level < len(self._verifiers) - 1:
                row, code = torch.from_numpy(parent[exists]), torch.from_numpy(codes[exists])
                state = head.advance(level, state[row], code)
        order: npt.NDArray[np.int64] = nodes[np.argsort(-scores.numpy(), kind="stable")]
        return order
