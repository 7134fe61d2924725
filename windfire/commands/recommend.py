"""windfire recommend."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recsys.errors import ConfigError, InputError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from feature_store.store import FeatureStore

app = typer.Typer()


@app.callback(invoke_without_command=True)
def command(
    registry: Annotated[Path, typer.Option(help="Directory of published bundles.")],
    users: Annotated[Path, typer.Option(help='One user_id per line, or JSONL {"user_id": ..., "history": [...]}.')],
    out: Annotated[Path, typer.Option(help="Directory for the Parquet parts; the same again resumes.")],
    *,
    state: Annotated[Path | None, typer.Option(help="Read histories from this server state.")] = None,
    data: Annotated[Path | None, typer.Option(help="Read histories from these tables.")] = None,
    store: Annotated[str | None, typer.Option(help="Read histories from this feature store.")] = None,
    n: Annotated[int, typer.Option(min=1, max=500, help="Items per user.")] = 20,
    scene: Annotated[str | None, typer.Option(help="Surface of the app.")] = None,
    exclude_seen: Annotated[bool, typer.Option(help="Leave out the items of the history.")] = True,
    decoder: Annotated[str, typer.Option(help="auto, or a decoder of the bundle's model.")] = "auto",
    engine: Annotated[str, typer.Option(help="auto, torch, torch_bf16, onnx or onnx_int8.")] = "auto",
    beam: Annotated[int, typer.Option(min=1, help="Prefixes kept per level.")] = 50,
    batch: Annotated[int, typer.Option(min=1, help="Users decoded together.")] = 64,
    part_rows: Annotated[int, typer.Option(min=1, help="Lines of the users file per part.")] = 10_000,
) -> None:
    """Score a file of users in one go; unknown users get what is popular, and the answer says so."""
    if not users.is_file():
        raise InputError("no such file", field="users", value=str(users), remedy="give a file of user ids")
    given = {"state": state, "data": data, "store": store}
    if len(named := [name for name, place in given.items() if place is not None]) > 1:
        raise ConfigError("histories come from one place", field=named[1], value=" and ".join(named),
                          remedy="give one of --state, --data and --store")  # fmt: skip

    from rich.progress import Progress

    from recsys.bundle import Registry, load_decoder
    from serving.stages import BundleRecommender
    from windfire.scoring import ScoringSettings, planned_time, score_users

    bundle = Registry(registry).open_current()
    chosen = load_decoder(bundle, None if decoder == "auto" else decoder, engine=engine)
    recommender = BundleRecommender(bundle, chosen, beam=beam)
    settings = ScoringSettings(
        n=n,
        scene=scene,
        exclude_seen=exclude_seen,
        beam=beam,
        time=planned_time(out, time.time_ns() // 1_000),
        batch=batch,
        part_rows=part_rows,
    )
    with users.open("rb") as file:
        lines = sum(1 for _ in file)
    with ExitStack() as stack, Progress() as bar:
        task = bar.add_task("users", total=lines)
        manifest = score_users(
            recommender,
            users,
            out,
            settings=settings,
            histories=_histories(stack, state, data, store),
            progress=lambda done: bar.update(task, completed=done),
        )
    counts = manifest["counts"]
    typer.echo(
        f"{counts['scored']:,} users scored, {counts['rejected']:,} lines rejected, "
        f"{counts['blank']:,} blank; {manifest['seconds']:.1f} s -> {out}"
    )


def _histories(
    stack: ExitStack, state: Path | None, data: Path | None, address: str | None
) -> Callable[[str], Sequence[str]]:
    """Where a user's item ids come from, oldest first; a user without any has an empty history."""
    from tempfile import TemporaryDirectory

    from feature_store.opening import LMDB, open_store
    from feature_store.settings import read_feature_settings
    from feature_store.standard import USER_RECENT
    from feature_store.streaming import load_events
    from recsys.records import POSITIVE_ACTIONS, TablesManifest

    if state is not None:
        if not (state / "features").is_dir():
            raise InputError(
                "no histories here", field="state", value=str(state), remedy="name the --state of `windfire serve`"
            )
        address = f"{LMDB}{state / 'features'}"
    elif data is not None:
        TablesManifest.load(data)
        address = f"{LMDB}{stack.enter_context(TemporaryDirectory(prefix='windfire-histories-'))}"
    elif address is None:
        return lambda _: ()
    store = stack.enter_context(closing(open_store(address, read_feature_settings().timeouts)))
    if data is not None:
        load_events(store, USER_RECENT, data, POSITIVE_ACTIONS)
    return partial(_items_of, store)


def _items_of(store: FeatureStore, user: str) -> Sequence[str]:
    """Item ids of one user.

    Raises:
        UnavailableError: the store does not say; nobody would notice a user scored without a history.
    """
    from feature_store.reading import Reason
    from feature_store.standard import USER_RECENT, recent_items

    (reading,) = store.read([(USER_RECENT, user)])
    if reading.reason not in (Reason.NONE, Reason.TTL, Reason.ABSENT, Reason.DELETED):
        raise UnavailableError(f"a history cannot be read: {reading.reason}", field="user_id", value=user,
                               remedy="see that the feature store answers, then run it again: it resumes")  # fmt: skip
    return recent_items(reading)
