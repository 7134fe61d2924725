"""Where requests go, and requests as the bytes that are sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from loadtest.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

_REMEDY = "write http://host:port; TLS is not spoken, test behind it"


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, rendered but for its deadline.

    Attributes:
        kind: what it is counted as, such as `recommend`.
        head: request line and headers up to and including the name of the deadline's.
        body: as sent.
    """

    kind: str
    head: bytes
    body: bytes

    def render(self, deadline_ms: int) -> bytes:
        """All bytes of it, with the milliseconds that are left."""
        return b"%b%d\r\n\r\n%b" % (self.head, deadline_ms, self.body)


@dataclass(frozen=True, slots=True)
class Target:
    """A server.

    Attributes:
        host: name or address.
        port: TCP port.
        headers: sent with every request, such as an API key; kept out of the representation.
    """

    host: str
    port: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, url: str, headers: Mapping[str, str] | None = None) -> Self:
        """From http://host:port.

        Raises:
            SettingsError: another form of URL, or a header that would end its line.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or 80
        except ValueError as error:
            raise SettingsError(f"no URL: {error}", field="url", value=url, remedy=_REMEDY) from error
        rest = parts.path.strip("/") or parts.query or parts.fragment or parts.username
        if parts.scheme != "http" or not host or rest:
            raise SettingsError("not the address of an HTTP server", field="url", value=url, remedy=_REMEDY)
        for name, value in (headers or {}).items():
            if not f"{name}{value}".isprintable() or ":" in name or not name:
                raise SettingsError("not a header", field="headers", value=name, remedy="printable characters only")
        return cls(host, port, dict(headers or {}))

    @property
    def url(self) -> str:
        """Its address as in the settings."""
        return f"http://{self._authority}"

    def request(self, kind: str, path: str, body: bytes, method: str = "POST") -> Request:
        """Render a request with a JSON body."""
        lines = [
            f"{method} {path} HTTP/1.1",
            f"Host: {self._authority}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *(f"{name}: {value}" for name, value in self.headers.items()),
            "X-Deadline-Ms: ",
        ]
        return Request(kind, "\r\n".join(lines).encode(), body)

    @property
    def _authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
