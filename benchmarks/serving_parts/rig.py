"""What a run stands on: a bundle, users' histories in a Redis of its own, and a service, each on its cores."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.redis_server import RedisServer
from benchmarks.serving_parts.bundles import drawn_histories, prepared_histories
from benchmarks.serving_parts.processes import HOST, Service, on_cores
from benchmarks.serving_parts.traffic import SlateJudge, users_asking
from feature_store.opening import Timeouts, open_store
from feature_store.standard import USER_RECENT
from feature_store.store import Merge, now_micros
from loadtest.target import Target
from recsys.bundle import Registry
from recsys.datasets.prepared import PreparedData
from recsys.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from benchmarks.serving_settings import ServingSettings
    from loadtest.target import Request

_BATCH: Final = 200
_APART: Final = 1_000_000  # microseconds between two events of a history
_PATIENT: Final = Timeouts(timedelta(seconds=30), timedelta(seconds=30))
DURABLE: Final = ("--appendonly", "yes", "--appendfsync", "everysec")  # what is killed has its histories afterwards


@dataclass(frozen=True, slots=True)
class Rig:
    """A service that answers.

    Attributes:
        settings: of the benchmark.
        folder: of this rig's files.
        registry: that it serves from.
        redis: with the histories.
        service: running.
        users: file of the users' ids.
    """

    settings: ServingSettings
    folder: Path
    registry: Registry
    redis: RedisServer
    service: Service
    users: Path

    @property
    def target(self) -> Target:
        """The service, for the client."""
        return Target.parse(self.service.url)

    def requests(self) -> Iterator[Request]:
        """Without end."""
        return users_asking(self.target, self.users, self.settings.n, self.settings.seed)

    def judge(self, *, others: bool = False) -> SlateJudge:
        """For answers from any bundle of the registry."""
        ids = {version: self.registry.open(version, verify=False).item_ids for version in self.registry.versions()}
        return SlateJudge(ids, self.settings.n, others=others)


@contextmanager
def rig(
    settings: ServingSettings,
    source: Registry,
    *,
    data: Path | None = None,
    workers: int = 1,
    engine: bool = True,
    module: str = "windfire",
    variables: Mapping[str, str] | None = None,
    history_address: str | None = None,
    redis: RedisServer | None = None,
    every: bool = False,
) -> Iterator[Rig]:
    """Start everything; this process is on the client's cores until the block ends.

    Args:
        settings: of the benchmark.
        source: its current version is copied into a registry of the rig's own.
        data: work directory with the users; None: users are drawn.
        workers: of the server.
        engine: whether there is an engine process.
        module: that runs the commands.
        variables: over those of the benchmark.
        history_address: of what stands before Redis; None: Redis itself.
        redis: running, for the histories; None: one of the rig's own.
        every: whether all versions of the source are copied.
    """
    with tempfile.TemporaryDirectory(prefix="wf-") as name, on_cores(settings.client_cores):
        folder = Path(name)
        registry = copied(source, folder / "registry", every=every)
        if redis is None:
            with started_redis(folder) as own:
                histories = fill(settings, registry, own.address, data)
                with _served(settings, folder, registry, own, histories, workers=workers, engine=engine,
                             module=module, variables=variables, address=history_address) as made:  # fmt: skip
                    yield made
        else:
            histories = fill(settings, registry, redis.address, data)
            with _served(settings, folder, registry, redis, histories, workers=workers, engine=engine,
                         module=module, variables=variables, address=history_address) as made:  # fmt: skip
                yield made


@contextmanager
def started_redis(folder: Path) -> Iterator[RedisServer]:
    """A Redis that has its values again after kill -9."""
    own = folder / "redis"
    own.mkdir()
    with RedisServer(own, DURABLE) as server:
        yield server


@contextmanager
def _served(
    settings: ServingSettings, folder: Path, registry: Registry, redis: RedisServer, users: Path, *, workers: int,
    engine: bool, module: str, variables: Mapping[str, str] | None, address: str | None,
) -> Iterator[Rig]:  # fmt: skip
    environment = {**_variables(settings, address or redis.address), **(variables or {})}
    service = Service(
        registry.root, folder, cores=settings.server_cores, variables=environment, workers=workers, engine=engine,
        module=module,
    )  # fmt: skip
    with service:
        yield Rig(settings, folder, registry, redis, service, users)


def fill(settings: ServingSettings, registry: Registry, address: str, data: Path | None) -> Path:
    """Put histories into a store.

    Returns:
        The file of the users' ids, beside the registry.
    """
    bundle = registry.open_current(verify=False)
    drawing = settings.users, settings.history, settings.seed
    histories = (
        drawn_histories(bundle, *drawing) if data is None else prepared_histories(PreparedData.load(data), *drawing)
    )
    base, merges = now_micros() - (settings.history + 1) * _APART, []
    for user, items in histories.items():
        entries: list[dict[str, Any]] = [
            {"time": base + n * _APART, "seq": n, "event_id": f"{user}-{n}", "item_id": item, "action": "click"}
            for n, item in enumerate(items)
        ]
        merges.append(Merge(USER_RECENT, user, entries))
    with closing(open_store(address, _PATIENT)) as store:
        for start in range(0, len(merges), _BATCH):
            store.merge(merges[start : start + _BATCH])
    path = registry.root.with_name("users.txt")
    path.write_text("\n".join(histories) + "\n")
    return path


def copied(source: Registry, root: Path, *, every: bool = False) -> Registry:
    """A registry with the same current version, of `every` version all, which may be changed.

    Raises:
        UnavailableError: the source has none.
    """
    current = source.current()
    if current is None:
        raise UnavailableError("the registry is empty", field="registry", value=str(source.root),
                               remedy="run `windfire publish` first")  # fmt: skip
    for version in source.versions() if every else [current]:
        shutil.copytree(source.path(version), root / "versions" / version)
    log = source.root / "catalog_log"
    if log.is_dir():
        shutil.copytree(log, root / "catalog_log")
    made = Registry(root)
    made.set_current(current)
    return made


def _variables(settings: ServingSettings, histories: str) -> dict[str, str]:
    return {
        "WINDFIRE_HISTORY_STORE": histories,
        "WINDFIRE_DECODER": "nezha",
        "WINDFIRE_BEAM": str(settings.beam),
        "WINDFIRE_DEADLINE": f"PT{settings.deadline:g}S",
        "WINDFIRE_HOST": HOST,
        "WINDFIRE_WORKERS": "1",
        "WINDFIRE_VLLM_URL": "",
        "WINDFIRE_KEYS_FILE": "",
        "WINDFIRE_BUNDLE_POLL": "PT0.5S",
        "WINDFIRE_LOG_LEVEL": "info",
    }
