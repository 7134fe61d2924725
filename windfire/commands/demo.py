"""windfire demo."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recsys.errors import InputError, UnavailableError

if TYPE_CHECKING:
    from rich.console import Console

    from recsys.bundle import Bundle
    from windfire.demo import Demo, Step
    from windfire.demo_answers import Answer

app = typer.Typer()

_CONFIG = Path(__file__).resolve().parents[2] / "config" / "demo.yaml"
_SHOWN_HISTORY = 5


@app.callback(invoke_without_command=True)
def command(
    *,
    data: Annotated[Path | None, typer.Option(help="Imported tables, or a CSV, JSONL or Parquet log.")] = None,
    mapping: Annotated[Path | None, typer.Option(help="Mapping file for a log with other column names.")] = None,
    work: Annotated[Path | None, typer.Option(help="Where everything goes; work/demo, or work/<name of data>.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the server on 127.0.0.1.")] = 8080,
    once: Annotated[bool, typer.Option("--once", help="Check the answers and exit.")] = False,
    config: Annotated[Path, typer.Option(help="Settings of the trainer.")] = _CONFIG,
) -> None:
    """The whole way: log, Spark, semantic IDs, training, bundle, HTTP answers."""
    from rich.console import Console

    from windfire.demo import Demo

    for name, path in (("data", data), ("mapping", mapping), ("config", config)):
        if path is not None and not path.exists():
            raise InputError("no such file or folder", field=name, value=str(path), remedy="check the path")
    if mapping is not None and (data is None or data.is_dir()):
        raise InputError(
            "a mapping file belongs to a log that is imported",
            field="mapping",
            value=str(mapping),
            remedy="give --data FILE",
        )
    require_port(port)
    # A demo that is asked to end takes its server with it.
    signal.signal(signal.SIGTERM, _end)
    home = work or Path("work") / ("demo" if data is None else data.stem)
    demo = Demo(home.resolve(), data, mapping, config)
    console = Console(highlight=False)
    prepare(demo, console)
    serve(demo, port, once=once, console=console)


def _end(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def require_port(port: int) -> None:
    """Refuse a port that something listens on, before any work is done.

    Raises:
        UnavailableError: it is taken.
    """
    from windfire.health import port_is_free

    if not port_is_free(port):
        raise UnavailableError(
            f"port {port} is taken on 127.0.0.1",
            field="port",
            value=port,
            remedy="give another one with --port (make demo PORT=8081), or end what listens there",
        )


def prepare(demo: Demo, console: Console) -> None:
    """Everything up to the published bundle; what was done with the same inputs is left out."""
    from windfire.demo import Journal

    demo.home.mkdir(parents=True, exist_ok=True)
    journal = Journal(demo.home / "demo.json")
    total = sum(_show(journal.do(step), step, console) for step in demo.first_steps())
    total += sum(_show(journal.do(step), step, console) for step in demo.last_steps())
    console.print(f"[bold]prepared in {total:.0f} s[/bold]")


def _show(seconds: float | None, step: Step, console: Console) -> float:
    took = "unchanged" if seconds is None else f"{seconds:.1f} s"
    console.print(f"[green]✓[/green] {step.name:<10} {took}")
    return seconds or 0.0


def serve(demo: Demo, port: int, *, once: bool, console: Console) -> None:
    """Start the server, ask, show and check; then go on serving until Ctrl-C unless `once`."""
    from feature_store.embedded import EmbeddedFeatureStore
    from feature_store.standard import USER_RECENT, recent_items
    from recsys.bundle import Registry
    from recsys.datasets.prepared import load_sequences
    from windfire import demo_answers

    require_port(port)
    bundle = Registry(demo.registry).open_current(verify=False)
    sequences = load_sequences(demo.work)
    users = [str(sequences.user_ids[user]) for user in demo_answers.choose_users(sequences, 3)]
    with demo_answers.running_server(demo.registry, demo.state, port, demo.home / "server.log") as server:
        store = EmbeddedFeatureStore(demo.state / "features")
        readings = store.read([(USER_RECENT, user) for user in users])
        histories = {user: recent_items(reading) for user, reading in zip(users, readings, strict=True)}
        store.close()
        answers = [demo_answers.ask(port, user, histories[user]) for user in users]
        for answer in answers:
            show_answer(answer, bundle, console)
        console.print(f"median of 50 requests over HTTP: {demo_answers.median_latency(port, users):.1f} ms")
        found = [fault for answer in answers for fault in demo_answers.faults(answer, bundle)]
        for fault in found:
            console.print(f"[red]✗[/red] {fault}", markup=True)
        if once:
            if found:
                raise typer.Exit(1)
            console.print("[green]✓[/green] all answers checked")
            return
        base = f"http://{demo_answers.HOST}:{port}"
        console.print(f"try it: {base}/docs   metrics: {base}/metrics   log: {demo.home / 'server.log'}")
        console.print("serving until Ctrl-C")
        try:
            status = server.wait()
        except KeyboardInterrupt:
            status = 0
    if status not in (0, -signal.SIGINT, -signal.SIGTERM):
        raise UnavailableError(f"the server ended with status {status}", remedy=f"see {demo.home / 'server.log'}")
    console.print("stopped")


def show_answer(answer: Answer, bundle: Bundle, console: Console) -> None:
    """Print a user's newest history and what was recommended, by title where there is one."""
    from rich.markup import escape
    from rich.table import Table

    if answer.status != 200:
        return
    body = answer.body
    recent = answer.history[-_SHOWN_HISTORY:]
    rows = bundle.item_ids.lookup(recent)
    titles = bundle.items["title"]
    named = [titles[int(row)].as_py() or item if row >= 0 else item for row, item in zip(rows, recent, strict=True)]
    console.rule(f"user {escape(answer.user_id)}: {len(answer.history)} events")
    console.print("newest: " + escape("  ·  ".join(named)))
    table = Table("#", "recommended", "item", "score", "source", box=None)
    for item in body["items"]:
        shown = (str(item["position"] + 1), item.get("title") or "", item["item_id"])
        table.add_row(*map(escape, shown), f"{item['score']:.3f}", item["source"])
    console.print(table)
    console.print(
        f"served_by {body['served_by']}, decoder {body['decoder']}, bundle {body['bundle_version']}, "
        f"{answer.milliseconds:.1f} ms"
    )
