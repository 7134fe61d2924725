"""Requests and answers of the administrative routes, as OpenAPI shows them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# As `recsys.bundle.registry.check_version` has it: no separators, no '..', no leading dot.
Version = Annotated[
    str,
    Field(
        min_length=1,
        max_length=128,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$",
        examples=["20260101T000000.000000Z-0123456789ab"],
    ),
]
Wait = Annotated[
    float | None,
    Field(ge=0, le=60, description="Seconds to wait for the workers; absent: WINDFIRE_RELOAD_TIMEOUT."),
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ReloadRequest(_Body):
    """Which version to serve."""

    version: Version | None = Field(
        default=None, description="Absent: CURRENT stays; who refused it tries again at once."
    )
    force: Annotated[str, Field(min_length=1, max_length=1_000, pattern=r"\S")] | None = Field(
        default=None, description="Why it is served although the quality gate refuses; written down."
    )
    wait_seconds: Wait = None


class RollbackRequest(_Body):
    """Which version to go back to."""

    version: Version | None = Field(default=None, description="Absent: the one that was served before.")
    wait_seconds: Wait = None


class WorkerState(_Model):
    """One process that decodes."""

    name: str = Field(description="Host and process number.")
    bundle_version: str | None = Field(description="What it answers with; null before the first bundle.")
    canary_version: str | None
    shadow_version: str | None
    refused_version: str | None = Field(description="What it cannot load.")
    refused: str | None = Field(description="Why.")
    beside_refused: str | None = Field(description="Why it cannot load the canary or the shadow.")


class MovedAnswer(_Model):
    """Every worker answers with the version."""

    version: str
    previous: str | None = Field(description="What CURRENT named before.")
    verdict: str | None = Field(description="What the quality gate said; null where it was not asked.")
    workers: list[WorkerState]


class ShareState(_Model):
    """A bundle beside the served one."""

    version: str
    share: float
    salt: str


class BundlesAnswer(_Model):
    """What the registry holds and who runs what."""

    current: str | None
    canary: ShareState | None
    shadow: ShareState | None
    versions: list[str] = Field(description="Oldest first; at most the newest 100.")
    workers: list[WorkerState]
