"""Runs in vLLM's environment: hands the pooler what no server of ours would, and prints how each request ended."""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
from safetensors.torch import load_file
from vllm.pooling_params import PoolingParams
from vllm.v1.pool.metadata import PoolingMetadata, PoolingStates

from recsys.backends.vllm_format import Answer, Wanted
from recsys.models.head import DraftHead
from windfire_vllm.export import Export
from windfire_vllm.pooler import DraftPooler

path, states_path = sys.argv[1:]
export = Export.load(path)
head = DraftHead(export.config)
weights = load_file(f"{path}/model.safetensors")
head.load_state_dict({name[5:]: value for name, value in weights.items() if name.startswith("head.")})
pooler = DraftPooler(export)
pooler.load(head)

states = torch.from_numpy(np.load(states_path))  # (L + 1, H) of a history
wanted = Wanted(10, 20, np.array([1, 2], dtype=np.int32), None).to_kwargs()
requests = {  # positions computed so far, states of this step, parameters
    "whole": (4, states, wanted),
    "cut by the prefix cache": (40, states[-3:], wanted),
    "not finite": (4, torch.full_like(states, torch.nan), wanted),
    "bad parameters": (4, states, {"k": 0}),
    "defaults": (4, states, None),
    "everything": (4, states, Wanted(2**31 - 1, 2**31 - 1, np.array([1, 2], dtype=np.int32), None).to_kwargs()),
    "goes on": (4, states, wanted),
}
lengths = np.array([len(rows) for _, rows, _ in requests.values()])
ends = torch.tensor([end for end, _, _ in requests.values()])
metadata = PoolingMetadata(
    prompt_lens=torch.where(torch.arange(len(ends)) == len(ends) - 1, ends + 5, ends),
    prompt_token_ids=None,
    prompt_token_ids_cpu=None,
    pooling_params=[PoolingParams(task="plugin", extra_kwargs=given) for _, _, given in requests.values()],
    pooling_states=[PoolingStates() for _ in requests],
)
metadata.build_pooling_cursor(lengths, seq_lens_cpu=ends, device=states.device)
pooled = pooler(torch.cat([rows for _, rows, _ in requests.values()]), metadata)
found = {}
for name, tensor in zip(requests, pooled, strict=True):
    answer = None if tensor is None else Answer.decode(tensor.numpy())
    found[name] = None if answer is None else [answer.status, answer.items.tolist(), answer.scores.tolist()]
sys.stdout.write(json.dumps(found))
