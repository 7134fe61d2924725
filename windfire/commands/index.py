"""`windfire index`: nearest-item indexes over a work directory's vectors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

    from recsys.retrieval.query_encoder import EncoderSpec
    from recsys.retrieval.settings import VectorsName

app = typer.Typer(no_args_is_help=True)


@app.callback()
def group() -> None:
    """Nearest-item indexes; `windfire publish` takes them into the bundle."""


@app.command()
def build(
    data: Annotated[Path, typer.Option(help="Work directory of `windfire offline run`; DATA/retrieval is written.")],
    config: Annotated[Path | None, typer.Option(help="YAML like config/retrieval.yaml.")] = None,
    vectors: Annotated[str, typer.Option(help="Of the work directory, separated by commas.")] = "text,collaborative",
    given: Annotated[Path | None, typer.Option(help="Vectors of your own: .npy, a row per item by item id.")] = None,
    encoder: Annotated[
        str,
        typer.Option(help="Of searched texts: auto (that of the text vectors, where found), none, hashing or a model."),
    ] = "auto",
    encode: Annotated[
        bool, typer.Option("--encode", help="Encode the items' texts with --encoder instead of taking their vectors.")
    ] = False,
    compressor: Annotated[
        list[str] | None,
        typer.Option(help="NAME=RUN: shorten the vectors of this name by a run of `windfire train smec`; repeatable."),
    ] = None,
    width: Annotated[int, typer.Option(min=1, help="Of shortened vectors: one of the run's.")] = 48,
    second_look: Annotated[
        bool,
        typer.Option("--second-look", help="Score candidates by whole vectors, left on the disk."),
    ] = False,
) -> None:
    """Build what changed; whatever is there and fits stays."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    from recsys.datasets.prepared import PreparedData
    from recsys.retrieval.building import write_retrieval
    from recsys.retrieval.folder import RETRIEVAL
    from recsys.retrieval.settings import IndexSettings

    settings = IndexSettings() if config is None else IndexSettings.load(config)
    prepared = PreparedData.load(data)
    chosen = _chosen(prepared, vectors, given)
    spec = _encoder(data, encoder, encode=encode)
    if encode and spec is not None:
        chosen["text"] = _encoded(prepared.items, spec)
    columns = (TextColumn("{task.description:14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {name: bars.add_task(name, total=len(values)) for name, values in chosen.items()}
        built = write_retrieval(
            data / RETRIEVAL,
            chosen,
            settings,
            item_ids=prepared.items["item_id"].to_pylist(),
            encoder=spec if "text" in chosen else None,
            own=["text"] if encode else [],
            compressors=_compressors(compressor or [], width),
            second_look=second_look,
            progress=lambda name, count: bars.update(tasks[name], completed=count),
        )
    _show(data / RETRIEVAL, set(built))
    if spec is None:
        typer.echo("no text encoder belongs to the indexes: POST /v1/search will answer 501; see --encoder")


def _chosen(prepared: Any, vectors: str, given: Path | None) -> dict[VectorsName, npt.NDArray[Any]]:
    from recsys.errors import ConfigError

    known: dict[str, tuple[VectorsName, npt.NDArray[Any]]] = {
        "text": ("text", prepared.text),
        "collaborative": ("collaborative", prepared.collaborative),
    }
    names = [name.strip() for name in vectors.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise ConfigError("no such vectors", field="vectors", value=name, remedy="text, collaborative or both")
    chosen = dict(known[name] for name in names)
    if given is not None:
        chosen["given"] = _read(given)
    if not chosen:
        raise ConfigError("nothing to build", field="vectors", value=vectors, remedy="name vectors, or give some")
    return chosen


def _compressors(given: list[str], width: int) -> dict[VectorsName, Path]:
    from recsys.errors import ConfigError
    from recsys.retrieval.settings import NAMES

    found: dict[VectorsName, Path] = {}
    for value in given:
        name, _, run = value.partition("=")
        known = next((known for known in NAMES if known == name), None)
        if known is None or not run or known in found:
            raise ConfigError(
                "not NAME=RUN with a name of its own", field="compressor", value=value, remedy="for instance text=RUN"
            )
        found[known] = Path(run) / "model" / f"compressor_{width}.onnx"
    return found


def _read(path: Path) -> npt.NDArray[Any]:
    import numpy as np

    from recsys.errors import InputError

    try:
        values: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"not an array that NumPy reads: {error}", field="given", value=str(path), remedy="write it with numpy.save"
        ) from error
    return values


def _encoder(data: Path, encoder: str, *, encode: bool) -> EncoderSpec | None:
    from recsys.errors import ConfigError
    from recsys.retrieval.query_encoder import EncoderSpec, encoder_of_job

    if not encode:
        return encoder_of_job(data, encoder)
    if encoder in {"auto", "none"}:
        raise ConfigError(
            "name the encoder that is to encode", field="encoder", value=encoder, remedy="hashing or a model"
        )
    return EncoderSpec.of(encoder, max_tokens=96, bfloat16=False)


def _encoded(items: pa.Table, spec: EncoderSpec) -> npt.NDArray[Any]:
    """(I, D) the items' texts by an encoder; zeros where an item has no text."""
    import numpy as np

    from recsys.text.encoder import load_encoder
    from recsys.text.item_text import item_text

    columns = (items[name].to_pylist() for name in ("title", "category_path", "brand", "text"))
    texts = [item_text(*row) for row in zip(*columns, strict=True)]
    vectors = load_encoder(spec.model, max_tokens=spec.max_tokens, bfloat16=spec.bfloat16).encode(texts)
    vectors[np.array([not text for text in texts])] = 0
    return vectors


def _show(folder: Path, built: set[VectorsName]) -> None:
    from recsys.retrieval.folder import load_retrieval

    for name, index in load_retrieval(folder, encoder=False).indexes.items():
        proposer = index.state.built.proposer
        size = sum(path.stat().st_size for path in (folder / name).iterdir())
        typer.echo(
            f"{name}: {'built' if name in built else 'unchanged'}, {len(index):,} items with a vector, "
            f"dimension {index.dimension}, {'empty' if proposer is None else proposer.kind}, {size / 1e6:.1f} MB"
        )
