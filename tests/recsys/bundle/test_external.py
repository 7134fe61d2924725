"""A model's folder is what it was at the import, or the bundle is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys.bundle.external import ExternalModel, describe_model
from recsys.errors import CorruptionError


@pytest.fixture
def external(tmp_path: Path) -> ExternalModel:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text(name)
    return ExternalModel("huggingface", str(folder), "mit", "float32", {}, [], describe_model(folder))


@pytest.mark.parametrize("hashes", [True, False])
@pytest.mark.parametrize("name", ["added_tokens.json", "model-00002-of-00002.safetensors"])
def test_a_file_that_would_be_read_and_was_added_is_named(external: ExternalModel, name: str, hashes: bool) -> None:
    external.verify(hashes=hashes)
    (external.directory / "notes.txt").write_text("read by nobody")
    external.verify(hashes=hashes)
    (external.directory / name).write_text("{}")
    with pytest.raises(CorruptionError, match=f"{name} was added"):
        external.verify(hashes=hashes)


def test_a_folder_that_is_gone_is_named(external: ExternalModel) -> None:
    external.directory.rename(external.directory.with_name("elsewhere"))
    with pytest.raises(CorruptionError, match=r"config\.json is missing"):
        external.verify()
