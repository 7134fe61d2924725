"""The last hidden states of a prompt that vLLM may compute in several steps.

Chunked prefill splits a prompt wherever the step's budget of tokens ends, and a hit in the prefix cache leaves out its
beginning. The head needs the states of the last L + 1 positions: they are kept over the steps, with the position they
end at, so that states are never joined over a gap.
"""

from __future__ import annotations

import torch


def keep_tail(kept: list[torch.Tensor], chunk: torch.Tensor, *, end: int, count: int) -> torch.Tensor:
    """Add a step's states to those of the steps before.

    Args:
        kept: what this function left there in the step before, empty at first; changed in place. It is vLLM's
            `PoolingStates.hidden_states_cache`, a list of tensors.
        chunk: (n, H) states of positions end - n..end - 1.
        end: positions computed so far, by this step and those before.
        count: states wanted.

    Returns:
        (m, H) the last states in a row, m <= count; fewer than `count` where the positions before were not computed.
    """
    rows = chunk
    if kept and int(kept[1]) == end - len(chunk):  # a preempted request begins anew: its old states do not adjoin
        rows = torch.cat([kept[0], chunk])
    rows = rows[-count:].clone()  # vLLM writes the next step over its own buffer
    kept[:] = [rows, torch.tensor(end)]
    return rows
