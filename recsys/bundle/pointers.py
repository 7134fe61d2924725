"""The pointers beside CURRENT: a bundle that answers some users, and one that answers behind the scenes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from recsys.bundle.registry import check_version
from recsys.errors import InputError
from recsys.storage import write_json_atomically

if TYPE_CHECKING:
    from recsys.bundle.registry import Registry

CANARY: Final = "CANARY"
SHADOW: Final = "SHADOW"
_SPACE: Final = 2.0**64


@dataclass(frozen=True, slots=True)
class Share:
    """A part of the traffic, by hash.

    Attributes:
        version: the bundle that answers it.
        share: above 0 and at most 1.
        salt: another salt draws other users.

    Raises:
        InputError: a value does not fit; names the field.
    """

    version: str
    share: float
    salt: str

    def __post_init__(self) -> None:
        check_version(self.version)
        if not 0.0 < self.share <= 1.0:
            raise InputError("a share is above 0 and at most 1", field="share", value=self.share, remedy="such as 0.05")

    def takes(self, unit: str) -> bool:
        """Whether a user (or a request without one) belongs to the share; a smaller share is a part of a larger one."""
        return bucket(self.salt, unit) < self.share


def bucket(salt: str, unit: str) -> float:
    """Where a unit stands in [0, 1) under a salt: the first 64 bits of SHA-256 over both, the same everywhere."""
    digest = hashlib.sha256(f"{salt}\0{unit}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / _SPACE


def read_share(registry: Registry, pointer: str) -> Share | None:
    """The share that CANARY or SHADOW names; None where there is none.

    Raises:
        InputError: the file holds something else.
    """
    path = registry.root / pointer
    try:
        value = json.loads(path.read_bytes())
        return Share(str(value["version"]), float(value["share"]), str(value["salt"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{pointer} holds no version, share and salt: {error}",
            field=pointer,
            value=str(path),
            remedy=f"set it again with `windfire bundles {pointer.lower()}`, or remove the file",
        ) from error


def write_share(registry: Registry, pointer: str, share: Share) -> None:
    """Set CANARY or SHADOW.

    Raises:
        InputError: the version is not in the registry, or is the one that is served.
    """
    with registry.exclusive():
        registry.require(share.version)
        if share.version == registry.current():
            raise InputError(
                "this version is served to everybody already",
                field="version",
                value=share.version,
                remedy="publish another one with --no-current first",
            )
        write_json_atomically(registry.root / pointer, asdict(share))


def clear_share(registry: Registry, pointer: str) -> Share | None:
    """Remove CANARY or SHADOW; returns what it was."""
    with registry.exclusive():
        before = read_share(registry, pointer)
        (registry.root / pointer).unlink(missing_ok=True)
    return before
