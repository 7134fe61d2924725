"""The command `windfire`: one Typer app whose sub-commands are imported when called."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Final

import typer

from recsys.errors import WindfireError

# name -> (module below windfire.commands, one line of help); each module has `app`, a typer.Typer
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "import": ("import_", "Read a log into tables; --check reports without writing."),
    "simulate": ("simulate", "Write a marketplace's log as tables."),
    "offline": ("offline", "Run the Spark jobs: sequences, embeddings, semantic IDs, features."),
    "import-model": ("import_model", "Bring in a generator that was trained elsewhere."),
    "train": ("train", "Fit a model."),
    "index": ("index", "Build nearest-item indexes of a work directory."),
    "publish": ("publish", "Make a bundle of a trained model and put it into the registry."),
    "bundles": ("bundles", "Canary, shadow, promotion and rollback of bundles, and their reports."),
    "catalogue": ("catalogue", "Fold the log of item changes into a bundle, and remove what nobody needs of it."),
    "export-vllm": ("export_vllm", "Write a bundle's model as vLLM loads it."),
    "serve": ("serve", "Answer over HTTP."),
    "engine": ("engine", "Decode for one or several servers, in a process of its own."),
    "keys": ("keys", "API keys: create, revoke, list."),
    "retention": ("retention", "Remove old segments of a stopped server's logs."),
    "features": ("features", "Look into the feature store, fill it, and compare it with tables."),
    "recommend": ("recommend", "Score a file of users in one go."),
    "evaluate": ("evaluate", "Measure a bundle on the held-out events."),
    "loadtest": ("loadtest", "Load a server over HTTP and say what it holds."),
    "bench": ("bench", "Measure and write the figures of docs/figures."),
    "doctor": ("doctor", "Say what is missing on this machine."),
    "demo": ("demo", "The whole way: log, Spark, training, bundle, HTTP answers."),
}


def build_app(requested: str | None) -> typer.Typer:
    """Build the app; only the requested command's module is imported, the others show their help line."""
    app = typer.Typer(name="windfire", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    for name, (module, text) in COMMANDS.items():
        if name == requested:
            app.add_typer(import_module(f"windfire.commands.{module}").app, name=name, help=text)
        else:
            app.add_typer(typer.Typer(), name=name, help=text)
    return app


def main() -> None:
    """Entry point; what the user can mend ends in one clear line on standard error and exit status 2."""
    # Threads that wait by spinning cost several times the work itself as soon as another process wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    requested = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), None)
    try:
        build_app(requested)()
    except WindfireError as error:
        typer.echo(f"windfire: {error.code}: {error}", err=True)
        raise SystemExit(2) from error
    except OSError as error:  # a path that cannot be read or written, a full disk
        place = "" if error.filename is None else f" [path = {str(error.filename)!r}]"
        remedy = "check that the path exists, that this user may use it, and that the disk has room"
        typer.echo(f"windfire: io: {error.strerror or error}{place} Remedy: {remedy}", err=True)
        raise SystemExit(2) from error
