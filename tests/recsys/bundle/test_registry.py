from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from recsys.bundle import BundleManifest, Registry
from recsys.bundle.manifest import TrainingData
from recsys.errors import DataError, InputError

STEPS = ("fsync", "replace", "rename", "open", "mkdir", "unlink", "rmdir")


def manifest(version: str = "") -> BundleManifest:
    return BundleManifest(
        version=version,
        model_version="m",
        tokenizer_version="t",
        catalog_sequence=0,
        items=0,
        created=datetime(2026, 1, 1, tzinfo=UTC).isoformat(),
        training=TrainingData(0, None, None),
        code_version="c",
    )


def writes(text: str) -> Callable[[Path], BundleManifest]:
    def write(directory: Path) -> BundleManifest:
        (directory / "folder").mkdir()
        (directory / "folder" / "data.txt").write_text(text)
        (directory / "more.txt").write_text(text * 2)
        return manifest()

    return write


def whole(registry: Registry) -> dict[str, str]:
    """Every published version's content, checked file by file."""
    found = {}
    for version in registry.versions():
        loaded = BundleManifest.load(registry.path(version))
        assert loaded.version == version
        assert sorted(loaded.files) == ["folder/data.txt", "more.txt"]
        found[version] = (registry.path(version) / "folder" / "data.txt").read_text()
    return found


def test_publish_names_parent_and_moves_current(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    assert (registry.versions(), registry.current()) == ([], None)
    first = registry.publish("v1", writes("one"))
    second = registry.publish("v2", writes("two"))
    assert (first.parent, second.parent) == (None, "v1")
    assert registry.current() == "v2"
    assert (tmp_path / "CURRENT").read_text() == "v2\n"
    assert whole(registry) == {"v1": "one", "v2": "two"}
    assert second.catalog_version == "v2.0"


def test_publish_without_moving_current(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.publish("v1", writes("one"))
    registry.publish("v2", writes("two"), make_current=False)
    assert registry.current() == "v1"
    assert registry.versions() == ["v1", "v2"]


def test_the_same_files_are_not_published_twice(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.publish("v1", writes("one"))
    registry.publish("v2", writes("two"))
    assert registry.publish("v3", writes("one")).version == "v1"
    assert registry.current() == "v1"
    assert whole(registry) == {"v1": "one", "v2": "two"}


def test_a_damaged_version_is_replaced_by_publishing_again(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.publish("v1", writes("one"))
    (registry.path("v1") / "more.txt").write_text("oneeno")
    assert registry.publish("v2", writes("one")).version == "v2"
    assert registry.current() == "v2"


def test_a_version_is_never_changed(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.publish("v1", writes("one"))
    with pytest.raises(InputError, match="published already"):
        registry.publish("v1", writes("two"))
    assert whole(registry) == {"v1": "one"}


def test_rollback(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for number in (1, 2, 3):
        registry.publish(f"v{number}", writes(str(number)))
    assert registry.rollback() == "v2"
    assert registry.current() == "v2"
    assert registry.rollback("v3") == "v3"
    assert registry.rollback("v1") == "v1"
    with pytest.raises(InputError, match="before the current"):
        registry.rollback()
    with pytest.raises(InputError, match="not in the registry"):
        registry.rollback("v9")
    assert registry.current() == "v1"


@pytest.mark.parametrize(
    "version", ["..", ".", "", "a/b", "../v1", "a..b", ".hidden", "a\\b", "a\n", "ä", "a" * 129, "a\0"]
)
def test_names_that_leave_the_registry_are_refused(tmp_path: Path, version: str) -> None:
    registry = Registry(tmp_path / "registry")
    calls: list[Callable[[], Any]] = [
        lambda: registry.publish(version, writes("x")),
        lambda: registry.set_current(version),
        lambda: registry.rollback(version),
        lambda: registry.open(version),
    ]
    for call in calls:
        with pytest.raises(InputError) as raised:
            call()
        assert raised.value.field == "version"
    assert registry.versions() == []


def test_a_pointer_that_leaves_the_registry_is_refused(tmp_path: Path) -> None:
    (tmp_path / "CURRENT").write_text("../../etc\n")
    with pytest.raises(InputError):
        Registry(tmp_path).current()


def test_an_empty_registry_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="windfire publish"):
        Registry(tmp_path).open_current()


class Faults:
    """Counts the steps of a publish that touch the disk and does something at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.at = 0, -1
        self.action: Callable[[], None] = lambda: None
        for owner, name in [(os, name) for name in STEPS]:
            monkeypatch.setattr(owner, name, self._wrap(getattr(owner, name)))
        for name in ("rename", "replace", "mkdir", "open", "unlink"):
            monkeypatch.setattr(Path, name, self._wrap(getattr(Path, name)))

    def _wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            (self.action if self.count == self.at else lambda: None)()
            return original(*arguments, **options)

        return step

    def arm(self, at: int, action: Callable[[], None]) -> None:
        self.count, self.at, self.action = 0, at, action


def fail() -> None:
    raise OSError(28, "no space left on device")


def steps_of_a_publish(registry: Registry, faults: Faults) -> int:
    faults.arm(-1, fail)
    registry.publish("v1", writes("one"))
    faults.arm(-1, fail)
    registry.publish("v2", writes("two"))
    registry.rollback("v1")
    return faults.count


def publish_at(registry: Registry, version: str, text: str) -> str:
    try:
        registry.publish(version, writes(text))
    except OSError:
        return "failed"
    return "published"


def test_a_full_disk_at_any_step_leaves_a_whole_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        registry, faults = Registry(tmp_path), Faults(patched)
        total = steps_of_a_publish(registry, faults)
        assert total > 20
        outcomes = set()
        for at in range(1, total + 1):
            faults.arm(at, fail)
            outcome = publish_at(registry, f"w{at:03d}", f"text {at}")
            faults.arm(-1, fail)
            served = registry.current()
            outcomes.add((outcome, served == f"w{at:03d}"))
            assert served in {"v1", f"w{at:03d}"}
            assert whole(registry)["v1"] == "one"
            registry.rollback("v1")
    # A step that fails after the pointer has moved (the flush of its directory) is reported all the same.
    assert outcomes >= {("failed", False), ("published", True)}
    assert registry.publish("x", writes("last")).version == "x"
    assert not list(tmp_path.rglob(".staged-*"))


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_kill_9_at_any_step_leaves_a_whole_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        registry, faults = Registry(tmp_path), Faults(patched)
        total = steps_of_a_publish(registry, faults)
        statuses = []
        for at in range(1, total + 1):
            child = os.fork()
            if child == 0:
                faults.arm(at, kill)
                registry.publish(f"w{at:03d}", writes(f"text {at}"))
                os._exit(0)
            statuses.append(os.waitpid(child, 0)[1])
            faults.arm(-1, kill)
            assert registry.current() in {"v1", f"w{at:03d}"}
            assert whole(registry)["v1"] == "one"
            registry.rollback("v1")
    assert signal.SIGKILL in statuses
    registry.publish("x", writes("last"))
    assert not list(tmp_path.rglob(".staged-*"))
    assert not list(tmp_path.glob(".CURRENT.*"))


def test_writers_take_turns(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            registry.publish(f"v{number}", writes(f"text {number}"))
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0, 0]
    assert whole(registry) == {f"v{number}": f"text {number}" for number in range(4)}
    assert registry.current() in registry.versions()
