from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from benchmarks.vllm import Measured, VllmSettings, figures_of
from benchmarks.vllm_models import Trained, Walks, export_language_model, train
from benchmarks.vllm_tables import vllm_table
from recsys.decoding.decoder import Ranked
from recsys.errors import ConfigError

SMALL = {"items": 90, "codebooks": [4, 5, 6], "d_model": 16, "history": 5, "steps": 4, "windows": 2, "rounds": 2,
         "warm_up": 1, "widths": [3]}  # fmt: skip


@pytest.fixture(scope="module")
def settings() -> VllmSettings:
    return VllmSettings.load().model_copy(update=SMALL)


@pytest.fixture(scope="module")
def trained(settings: VllmSettings) -> Trained:
    return train(settings)


def test_the_language_model_continues_with_the_same_states(trained: Trained, tmp_path: Path) -> None:
    export_language_model(trained, tmp_path)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    items = np.array([3, 70, 12])
    prompt = [0, *(trained.features.codes[items] + np.array(trained.first)).ravel().tolist()]
    with torch.inference_mode():
        logits = model.eval()(input_ids=torch.tensor([prompt])).logits[0, -1]
        last = trained.model.encode_prompt(torch.from_numpy(items)[None], torch.tensor([3])).last
        torch.testing.assert_close(logits, trained.output(last)[0], rtol=1e-4, atol=1e-4)
    words = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).decode([1, 5, 15], skip_special_tokens=False)
    assert words == "t1 t5 t15"


def test_training_lowers_the_loss_of_both_writers(settings: VllmSettings) -> None:
    longer = settings.model_copy(update={"windows": 8, "jump": 0.0})
    walks = Walks(train(settings).features.codes, 0.0)
    items = torch.from_numpy(walks.draw(np.random.default_rng(9), 30, 6))
    losses = []
    for steps in (2, 50):
        found = train(longer.model_copy(update={"steps": steps}))
        with torch.inference_mode():
            states = found.model.states(items, None)
            tokens = found.model.input.codes[items[:, -1], 0] + found.first[0]
            losses.append(float(torch.nn.functional.cross_entropy(found.output(states.backbone[:, -1, 0]), tokens)))
    assert losses[1] < losses[0] - 0.2


def test_figures_say_what_was_returned(trained: Trained, settings: VllmSettings) -> None:
    own, plugin, beam = (Measured([3]) for _ in range(3))
    histories = [np.array([1, 2], np.int32), np.array([5], np.int32), np.array([6], np.int32)]  # the first warms up
    scores = np.array([-1.0, -2.0], np.float32)
    tokens = (trained.features.codes + np.array(trained.first)).tolist()
    for _ in range(2):
        own.answers[3].append(Ranked(np.array([7, 8], np.int32), scores))
        plugin.answers[3].append(Ranked(np.array([7, 6], np.int32), scores - np.float32(0.25)))
        beam.answers[3].append([tokens[7], tokens[8], [1, 1, 1], tokens[9][:2]])
        for run, ms in ((own, 1.0), (plugin, 2.0), (beam, 8.0)):
            run.ms[3].append(ms)
    figures = figures_of(3, {"nezha": own, "vllm_nezha": plugin, "vllm_beam": beam}, trained, histories, settings)
    values = {figure.name.removeprefix("decoding.vllm.beam3."): figure.value for figure in figures}
    assert values == {
        "nezha.ms": 1.0, "vllm_nezha.ms": 2.0, "vllm_beam.ms": 8.0, "vllm_beam.over_vllm_nezha": 4.0,
        "vllm_beam.invalid": 0.5, "vllm_nezha.invalid": 0.25, "vllm_nezha.same_items": 0.5,
        "vllm_nezha.score_difference": 0.25,
    }  # fmt: skip
    table = vllm_table({figure.name: figure for figure in figures})
    assert table.rows == [["3", "1", "2", "8", "4", "0.25", "0.5", "0.5", "0.25"]]


def test_a_bad_setting_names_the_field(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("widths: []")
    with pytest.raises(ConfigError, match="benchmark setting") as raised:
        VllmSettings.load(tmp_path / "own.yaml")
    assert raised.value.field is not None
    assert VllmSettings.load(quick=True).rounds < VllmSettings.load().rounds
