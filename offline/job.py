"""Jobs that are whole or absent, skipped when nothing changed, and resumed after a kill.

A job owns one folder below the work directory. It writes into a staged directory, which is renamed when the job is
done: rows in `data/*.parquet`, files that belong to the result beside it, helper tables in other folders. The
manifest records what went in (`fingerprint`) and what came out (`content`). A job runs again only when the content of
what it reads, its settings or its version changed; a rerun that gives the same content leaves all later jobs alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import psutil
import pyarrow.parquet as pq

from offline.checksum import output_checksum
from recsys.errors import DataError, UnavailableError
from recsys.storage import read_json, sha256_parts, staged_directory, write_json_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from pyspark.sql import DataFrame, SparkSession

    from offline.session import LazySession

JOB_FORMAT: Final = "windfire.job/1"
_MANIFEST: Final = "manifest.json"


@dataclass(frozen=True, slots=True)
class JobManifest:
    """What a job read, did and wrote.

    Attributes:
        job: its name.
        version: of its code; raised when the same inputs give another output.
        inputs: name to content checksum, of jobs and of outside files.
        settings: the part of the settings that it reads.
        counts: rows in, out, rejected and the like.
        seconds: wall time.
        cpu_seconds: user and system time of this process, the Java process and the Python workers on this machine.
        fingerprint: of version, inputs and settings.
        content: checksum of the output, independent of the partition into files.
        parent: content of the output that this one replaced, where helper tables describe the difference to it.
        increment: whether the output was made from its parent and the difference only.
        measures: what the job found out about its output, such as shares.
        skipped: whether this run left the output as it was; not stored.
    """

    job: str
    version: int
    inputs: dict[str, str]
    settings: dict[str, Any]
    counts: dict[str, int]
    seconds: float
    cpu_seconds: float
    fingerprint: str
    content: str
    parent: str | None = None
    increment: bool = False
    format: str = JOB_FORMAT
    measures: dict[str, float] = field(default_factory=dict)
    skipped: bool = field(default=False, compare=False)

    def save(self, directory: Path) -> None:
        """Write manifest.json into `directory`."""
        value = asdict(self)
        del value["skipped"]
        write_json_atomically(directory / _MANIFEST, value)

    @classmethod
    def load(cls, directory: Path) -> JobManifest | None:
        """Read a job's manifest; None where the job has not run, or was run by another format."""
        path = directory / _MANIFEST
        if not path.is_file():
            return None
        value: dict[str, Any] = read_json(path)
        return cls(**value) if value.get("format") == JOB_FORMAT else None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job's function returns.

    Attributes:
        counts: for the manifest.
        has_delta: helper tables describe the difference to the previous output.
        increment: the output was made from the previous one.
        measures: for the manifest.
    """

    counts: dict[str, int]
    has_delta: bool = False
    increment: bool = False
    measures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """One step of the pipeline.

    Attributes:
        name: of the job and of its folder.
        version: raise it when the same inputs give another output.
        run: writes the output; see `JobContext`.
        needs: names of jobs whose content it reads.
        files: fingerprints of what it reads from outside the work directory.
        settings: everything else that the output depends on; JSON values.
    """

    name: str
    version: int
    run: Callable[[JobContext], Outcome]
    needs: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobContext:
    """What a job's function may use.

    Attributes:
        work: the work directory, to read other jobs' outputs.
        output: the staged directory to write into.
        inputs: content checksums of what is read now.
        previous: manifest of the output that this run replaces, where version and settings are the same.
        lazy: the session, started on first use.
    """

    work: Path
    output: Path
    inputs: Mapping[str, str]
    previous: JobManifest | None
    lazy: LazySession
    job: str

    @property
    def session(self) -> SparkSession:
        """The Spark session."""
        return self.lazy.get()

    def manifest(self, job: str) -> JobManifest:
        """The manifest of a job that ran before this one."""
        found = JobManifest.load(self.work / job)
        if found is None:
            raise DataError("an offline job's output is missing", field="job", value=job, remedy="run the pipeline")
        return found

    def read(self, job: str, part: str = "data") -> DataFrame:
        """A table that an earlier job wrote; with this job's own name, its previous output."""
        return self.session.read.parquet(f"file:{self.work / job / part}")

    def write(self, frame: DataFrame, part: str = "data") -> int:
        """Add a frame's rows to a folder of the output.

        Returns:
            The number of rows in that folder.
        """
        target = self.output / part
        frame.write.mode("append").parquet(f"file:{target}")
        for litter in target.glob(".*.crc"):
            litter.unlink()
        return count_rows(target)

    def link_previous(self, part: str = "data") -> None:
        """Take over the files of the previous output without copying their bytes."""
        target = self.output / part
        target.mkdir()
        for file in sorted((self.work / self.job / part).glob("*.parquet")):
            os.link(file, target / file.name)

    def delta_from(self, job: str) -> bool:
        """Whether an input's helper tables describe its difference to what the previous run of this job read."""
        parent = self.manifest(job).parent
        return self.previous is not None and parent is not None and self.previous.inputs.get(job) == parent


def count_rows(directory: Path) -> int:
    """Rows of the Parquet files directly below a directory, from their footers."""
    return sum(pq.ParquetFile(file).metadata.num_rows for file in directory.glob("*.parquet"))


def run_job(job: Job, work: Path, lazy: LazySession) -> JobManifest:
    """Run a job, or leave its output alone when nothing that it reads has changed."""
    final = work / job.name
    inputs = dict(job.files)
    for name in job.needs:
        needed = JobManifest.load(work / name)
        if needed is None:
            raise DataError("an offline job's output is missing", field="job", value=name, remedy="run the pipeline")
        inputs[name] = needed.content
    settings: dict[str, Any] = json.loads(json.dumps(dict(job.settings)))
    described = json.dumps([job.name, job.version, inputs, settings], sort_keys=True)
    fingerprint = sha256_parts([JOB_FORMAT, described])
    before = JobManifest.load(final)
    if before is not None and before.fingerprint == fingerprint:
        return replace(before, skipped=True)
    same_kind = before is not None and (before.version, before.settings) == (job.version, settings)
    lazy.get()  # its start is no job's time
    wall, cpu = time.monotonic(), cpu_seconds()
    with staged_directory(final) as staged:
        context = JobContext(work, staged, inputs, before if same_kind else None, lazy, job.name)
        outcome = job.run(context)
        content = output_checksum(lazy.get(), staged)
        manifest = JobManifest(
            job=job.name,
            version=job.version,
            inputs=inputs,
            settings=settings,
            counts=outcome.counts,
            seconds=round(time.monotonic() - wall, 3),
            cpu_seconds=round(cpu_seconds() - cpu, 3),
            fingerprint=fingerprint,
            content=content,
            parent=before.content if before is not None and outcome.has_delta else None,
            increment=outcome.increment,
            measures=outcome.measures,
        )
        manifest.save(staged)
    return manifest


@contextmanager
def exclusive(work: Path) -> Iterator[None]:
    """Hold the work directory: two runs never write it at once; a killed run's lock is gone with it.

    Raises:
        UnavailableError: another run holds it.
    """
    work.mkdir(parents=True, exist_ok=True)
    with (work / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UnavailableError(
                "another run is using this work directory",
                field="out",
                value=str(work),
                remedy="wait until it has ended, or choose another directory",
            ) from None
        yield


def cpu_seconds() -> float:
    """User and system seconds of this process and of all its descendants, ended ones included."""
    me = psutil.Process()
    total = 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total
