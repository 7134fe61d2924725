"""The pooler: from hidden states to ranked items, inside vLLM's step."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import TYPE_CHECKING, Any, Final

import torch
from vllm.model_executor.layers.pooler import Pooler

from recsys.backends.vllm_format import Answer, Status, Wanted, unpack_shared
from recsys.decoding.eligibility import Eligibility
from recsys.decoding.nezha import HeadRanker
from recsys.errors import InputError
from windfire_vllm.tail import keep_tail

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    import numpy as np
    import numpy.typing as npt
    from vllm.tasks import PoolingTask
    from vllm.v1.pool.metadata import PoolingMetadata

    from recsys.models.head import DraftHead
    from windfire_vllm.export import Export

    Group = tuple[int, int, bytes | None]

_KEPT: Final = 4  # shared bitsets that are remembered, as many as `EligibilityIndex` keeps counted


class DraftPooler(Pooler):  # type: ignore[misc] # vLLM is not installed where this is checked
    """Draft head, verifier and eligibility behind the backbone's last L + 1 states.

    Whatever a request asks, it gets an answer with a status: an error raised here would end vLLM's engine.

    Args:
        export: the exported model.
    """

    def __init__(self, export: Export) -> None:
        super().__init__()
        self._items = export.manifest.items
        self._levels = export.config.levels
        self._rows = export.vocabulary.rows
        self._export = export
        self._ranker: HeadRanker | None = None
        self._shared: OrderedDict[bytes, npt.NDArray[np.bool_]] = OrderedDict()

    def load(self, head: DraftHead) -> None:
        """Lay the head's weights and the catalogue out for search, once the weights are there."""
        self._ranker = HeadRanker(
            head,
            self._export.trie(),
            whole_codebook=self._export.config.whole_codebook,
            prior=self._export.train_counts,
        )

    def get_supported_tasks(self) -> AbstractSet[PoolingTask]:
        """See `vllm`'s `Pooler`."""
        return {"plugin"}

    def forward(self, hidden_states: torch.Tensor, pooling_metadata: PoolingMetadata) -> list[torch.Tensor | None]:
        """Answer the requests whose prompt is complete.

        Args:
            hidden_states: (tokens of all requests of the step, H).
            pooling_metadata: which rows are whose.

        Returns:
            Per request `Answer.encode`'s form, None where the prompt goes on in a later step.
        """
        cursor = pooling_metadata.get_pooling_cursor()
        chunks = torch.split(hidden_states, cursor.num_scheduled_tokens_cpu.tolist())
        ends, finished = cursor.seq_lens_cpu.tolist(), cursor.get_finished_mask()
        answers: dict[int, Answer] = {}
        groups: dict[Group, list[tuple[int, torch.Tensor, Wanted]]] = defaultdict(list)
        for place, (chunk, state) in enumerate(zip(chunks, pooling_metadata.pooling_states, strict=True)):
            rows = keep_tail(state.hidden_states_cache, chunk, end=ends[place], count=self._rows)
            if not finished[place]:
                continue
            state.clean()
            wanted = self._wanted(pooling_metadata.pooling_params[place].extra_kwargs)
            if wanted is None:
                answers[place] = Answer.failed(Status.BAD_REQUEST)
            elif len(rows) < self._rows:
                answers[place] = Answer.failed(Status.TOO_FEW_ROWS)
            elif not torch.isfinite(rows).all():
                answers[place] = Answer.failed(Status.NOT_FINITE)
            else:
                groups[wanted.k, wanted.beam, wanted.shared].append((place, rows, wanted))
        for group in groups.values():
            ranked = self._ranked([rows for _, rows, _ in group], [wanted for _, _, wanted in group])
            answers |= dict(zip([place for place, _, _ in group], ranked, strict=True))
        return [self._encoded(answers.get(place), hidden_states.device) for place in range(len(chunks))]

    def _wanted(self, given: dict[str, Any] | None) -> Wanted | None:
        try:
            return Wanted.from_kwargs(given, items=self._items)
        except InputError:
            return None

    @torch.inference_mode()
    def _ranked(self, rows: Sequence[torch.Tensor], wanted: Sequence[Wanted]) -> list[Answer]:
        """Answers to requests of the same k, beam and shared bitset."""
        if self._ranker is None:  # `--load-format dummy`
            raise RuntimeError("the draft head was not loaded")
        hidden = torch.stack(list(rows)).float()  # (B, L + 1 or 1, H)
        hidden = hidden.expand(-1, self._levels + 1, -1)
        eligibility = Eligibility(self._bitset(wanted[0].shared), [one.excluded for one in wanted])
        masks = self._ranker.masks(eligibility, len(wanted))
        k = min(wanted[0].k, self._items)  # nothing is laid out for more items than there are
        ranked, widened = self._ranker.rank(hidden, masks, k=k, beam=wanted[0].beam)
        return [Answer(one.items, one.scores, widened) for one in ranked]

    def _bitset(self, packed: bytes | None) -> npt.NDArray[np.bool_] | None:
        """The same array for the same bits, so that its live prefixes are counted once."""
        if packed is None:
            return None
        known = self._shared.get(packed)
        if known is None:
            known = self._shared[packed] = unpack_shared(packed, self._items)
        self._shared.move_to_end(packed)
        while len(self._shared) > _KEPT:
            self._shared.popitem(last=False)
        return known

    @staticmethod
    def _encoded(answer: Answer | None, device: torch.device) -> torch.Tensor | None:
        return None if answer is None else torch.from_numpy(answer.encode()).to(device)
