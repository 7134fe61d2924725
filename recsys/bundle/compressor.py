"""A compressor as files: config.json and weights.safetensors of one directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from recsys.bundle.manifest import corrupt
from recsys.errors import DataError
from recsys.models.smec import Compressor, CompressorConfig
from recsys.storage import read_json, write_json_atomically

if TYPE_CHECKING:
    from pathlib import Path

_CONFIG: Final = "config.json"
_WEIGHTS: Final = "weights.safetensors"


def save_compressor(directory: Path, model: Compressor) -> None:
    """Write both files into an existing directory, which the caller stages."""
    write_json_atomically(directory / _CONFIG, model.config.to_dict())
    save_file({name: value.cpu().contiguous() for name, value in model.state_dict().items()}, directory / _WEIGHTS)


def load_compressor(directory: Path) -> Compressor:
    """Read what `save_compressor` wrote, in evaluation mode.

    Raises:
        ConfigError: config.json does not describe a compressor.
        CorruptionError: the weights cannot be read; names the file.
        DataError: no compressor there, or weights that do not fit its configuration or are not finite.
    """
    path = directory / _WEIGHTS
    try:
        model = Compressor(CompressorConfig.from_dict(read_json(directory / _CONFIG)))
        weights = load_file(path)
    except FileNotFoundError as error:
        raise DataError(
            f"no compressor here: {error.filename or error} is missing",
            field="compressor",
            value=str(directory),
            remedy="give the `model` folder of a run of `windfire train smec`",
        ) from error
    except (SafetensorError, ValueError) as error:
        raise corrupt(path, str(error)) from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(f"the weights do not fit config.json: {error}", field="weights", value=str(path)) from error
    if bad := [name for name, value in weights.items() if not bool(value.isfinite().all())]:
        raise DataError("weights that are not finite", field="weights", value=bad[0], remedy="train again")
    return model.eval()
