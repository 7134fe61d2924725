"""From a language model's folder and a SID file to a run and a work directory that the other commands take."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from safetensors.torch import save_file

from recsys.backends.prompted import Vocabulary, load_causal, prompted_from, read_shape
from recsys.bundle.external import ExternalModel, describe_model
from recsys.bundle.writer import RUN_FORMAT
from recsys.datasets.derived import Kept, derive_work
from recsys.datasets.prepared import PreparedData
from recsys.errors import ConfigError, DataError, InputError
from recsys.imported.agreement import expected_scores, largest_difference
from recsys.imported.licence import read_licence
from recsys.imported.sid_file import match_tokens, read_sids
from recsys.imported.template import FAMILIES
from recsys.models import RecommenderConfig
from recsys.storage import sha256_file, sha256_parts, staged_directory, write_json_atomically

if TYPE_CHECKING:
    from recsys.backends.prompted import PromptTokens, Shape
    from recsys.datasets.derived import ForeignIds
    from recsys.imported.template import Template

WORK: Final = "work"  # the folder of the derived work directory inside the run
_HISTORIES: Final = (1, 2, 3)
_TOLERANCE: Final = {"float32": 1e-3, "bfloat16": 0.25}  # of a log-probability


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import found.

    Attributes:
        external: the model.
        kept: of the catalogue.
        sids: items that the SID file names.
        shared: items of the new catalogue that share their semantic ID with another one.
        template: the prompt's texts.
        prompt_tokens: of a prompt without a history.
        item_tokens: of one item in it.
        difference: largest difference between a log-probability of ours and of the model by itself.
        model_type: of the language model.
        tokenizer_version: of the semantic IDs.
    """

    external: ExternalModel
    kept: Kept
    sids: int
    shared: int
    template: Template
    prompt_tokens: int
    item_tokens: int
    difference: float
    model_type: str
    tokenizer_version: str


def import_model(
    family: str,
    directory: Path,
    *,
    sids: Path,
    work: Path,
    out: Path,
    template: Path | None = None,
    max_history: int | None = None,
    precision: str = "float32",
) -> ImportReport:
    """Bring in a language model that writes semantic IDs.

    Args:
        family: `minionerec`, `openonerec` or `huggingface`: the prompt's form.
        directory: the model's folder; it stays where it is.
        sids: see `recsys.imported.sid_file`.
        work: work directory of the catalogue.
        out: the run directory; `out`/work is the work directory with the model's semantic IDs.
        template: YAML over the family's template.
        max_history: over the template's.
        precision: `float32` or `bfloat16`.

    Raises:
        ConfigError: an unknown family, template field or precision, or prompts that the model cannot read.
        DataError: the model cannot be read, lacks tokens, or answers otherwise than by itself.
        InputError: no such folder or SID file, or one that cannot be read.
    """
    started = time.monotonic()
    chosen = _template(family, template, max_history)
    _check_folder(directory)
    shape, vocabulary = read_shape(directory), Vocabulary(directory)
    tokens = read_sids(sids, chosen.pattern)
    ids, code_tokens = match_tokens(tokens, vocabulary)
    prompt = _tokenised(chosen, vocabulary, list(tokens.values()))
    _check_length(prompt, chosen, len(ids.sizes), shape)
    out.mkdir(parents=True, exist_ok=True)
    (out / "manifest.json").unlink(missing_ok=True)  # an import that fails leaves no run
    kept = derive_work(work, out / WORK, ids)
    data = PreparedData.load(out / WORK)
    config = _config(shape, data, chosen)
    difference = _checked(directory, config, data, prompt, code_tokens, precision)
    external = ExternalModel(
        family=family,
        path=str(directory.resolve()),
        licence=read_licence(directory),
        precision=precision,
        prompt={name: list(part) for name, part in asdict(prompt).items()},
        code_tokens=code_tokens,
        files=describe_model(directory),
    )
    report = ImportReport(
        external=external,
        kept=kept,
        sids=len(tokens),
        shared=_shared(data),
        template=chosen,
        prompt_tokens=len(prompt.ids([])),
        item_tokens=len(prompt.before) + len(ids.sizes) + len(prompt.behind),
        difference=difference,
        model_type=shape.model_type,
        tokenizer_version=ids.version,
    )
    _write_run(out, config, report, ids, sids, seconds=time.monotonic() - started)
    return report


def _template(family: str, path: Path | None, max_history: int | None) -> Template:
    if family not in FAMILIES:
        raise ConfigError("no such family", field="family", value=family, remedy=f"one of {', '.join(FAMILIES)}")
    chosen = FAMILIES[family] if path is None else FAMILIES[family].load(path)
    return chosen if max_history is None else replace(chosen, max_history=max_history)


def _check_folder(directory: Path) -> None:
    if not directory.is_dir():
        raise InputError(
            "no such folder", field="model", value=str(directory), remedy="give the model's folder; nothing is fetched"
        )
    if not (directory / "config.json").is_file():
        raise InputError(
            "the model's folder has no config.json",
            field="model",
            value=str(directory),
            remedy="give the folder that `save_pretrained` wrote, for instance a checkpoint's",
        )
    if not any(directory.glob("*.safetensors")):
        raise InputError(
            "the model's folder has no weights as safetensors; pickled weights are not read",
            field="model",
            value=str(directory),
            remedy="save the model again with safe_serialization=True",
        )


def _tokenised(template: Template, vocabulary: Vocabulary, sids: list[tuple[str, ...]]) -> PromptTokens:
    """The prompt in pieces; put together they must be the tokens of the whole text."""
    prompt = template.tokenise(vocabulary)
    if not prompt.prefix and not prompt.suffix:
        raise ConfigError(
            "a prompt needs a text before or behind the history: an empty history must have an answer",
            field="template.prefix",
            value=template.prefix,
            remedy="give the template a prefix or a suffix, or a start token where the tokenizer has one",
        )
    for count in _HISTORIES:
        items = [sids[(place * 7919 + count) % len(sids)] for place in range(count)]  # spread over the file
        codes = [[token for text in item if (token := vocabulary.token(text)) is not None] for item in items]
        if template.written(vocabulary, items) != prompt.ids(codes):
            raise ConfigError(
                f"the tokenizer reads a prompt of {count} items otherwise than its pieces",
                field="template",
                value="".join(items[0]),
                remedy="let no text of the template begin or end inside a token, and give the SID tokens to the "
                "tokenizer as added tokens that do not strip spaces",
            )
    return prompt


def _check_length(prompt: PromptTokens, template: Template, levels: int, shape: Shape) -> None:
    per_item = len(prompt.before) + levels + len(prompt.behind) + len(prompt.between)
    longest = len(prompt.ids([])) + template.max_history * per_item + levels
    if shape.positions is not None and longest > shape.positions:
        raise ConfigError(
            f"a prompt of {template.max_history} items takes {longest} tokens, the model reads {shape.positions}",
            field="max_history",
            value=template.max_history,
            remedy="give a smaller --max-history",
        )


def _config(shape: Shape, data: PreparedData, template: Template) -> RecommenderConfig:
    return RecommenderConfig(
        codebook_sizes=data.codebook_sizes,
        num_items=len(data.codes),
        text_dim=0,
        collaborative_dim=0,
        shape="token",
        use_item_id=False,
        d_model=shape.width,
        layers=shape.layers,
        heads=1,
        max_history=template.max_history,
        dropout=0.0,
        drop_id=0.0,
        transition="gru",
        fusion="concat",
        backbone="imported",
    )


def _checked(
    directory: Path,
    config: RecommenderConfig,
    data: PreparedData,
    prompt: PromptTokens,
    code_tokens: list[list[int]],
    precision: str,
) -> float:
    """The largest difference between the model's own log-probabilities and those that `beam` will use."""
    model = load_causal(directory, precision)
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max(max(level) for level in code_tokens)
    if largest >= rows:
        raise DataError(
            f"a SID token has the id {largest}, the model has {rows} embeddings",
            field="tokens",
            value=largest,
            remedy="the tokenizer belongs to another model, or its embeddings were not resized",
        )
    expected = expected_scores(model, data.codes, prompt, code_tokens, longest=config.max_history)
    ours = prompted_from(model, config, codes=data.codes, prompt=prompt, code_tokens=code_tokens)
    difference = largest_difference(ours, data.codes, expected)
    if not difference <= _TOLERANCE[precision]:
        raise DataError(
            f"put together from embedded tokens the model answers otherwise (by {difference:.3g}) than by itself",
            field="model",
            value=str(directory),
            remedy="its type scales or caps what stands around the decoder: such a model cannot be imported",
        )
    return difference


def _shared(data: PreparedData) -> int:
    _, counts = np.unique(data.codes, axis=0, return_counts=True)
    return int(counts[counts > 1].sum())


def _write_run(
    out: Path, config: RecommenderConfig, report: ImportReport, ids: ForeignIds, sids: Path, *, seconds: float
) -> None:
    external = report.external
    with staged_directory(out / "model") as staged:
        write_json_atomically(staged / "config.json", config.to_dict())
        external.save(staged)
        save_file({}, staged / "weights.safetensors")  # no head yet
    imported: dict[str, Any] = {
        "family": external.family,
        "path": external.path,
        "licence": external.licence,
        "model_type": report.model_type,
        "precision": external.precision,
        "template": report.template.to_dict(),
        "sids": {"file": sids.name, "sha256": sha256_file(sids), "items": report.sids, "shared": report.shared},
        "catalogue": report.kept._asdict(),
        "largest_difference": report.difference,
    }
    checksums = [f"{name} {entry.sha256}" for name, entry in sorted(external.files.items())]
    manifest = {
        "format": RUN_FORMAT,
        "settings": {"imported": imported},
        "seed": 0,
        "tokenizer_version": ids.version,
        "items": sha256_parts(PreparedData.load(out / WORK).items["item_id"].to_pylist()),
        "fingerprint": sha256_parts([*checksums, ids.version, repr(report.template), external.precision]),
        "steps": 0,
        "metrics": {},
        "seconds": round(seconds, 3),
    }
    write_json_atomically(out / "manifest.json", manifest)
