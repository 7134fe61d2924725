from __future__ import annotations

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.errors import SettingsError
from loadtest.target import Target


class Parsed:
    """What an HTTP parser reads out of a request."""

    def __init__(self, data: bytes) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.url = self.body = b""
        self.complete = 0
        parser = httptools.HttpRequestParser(self)
        parser.feed_data(data)
        self.method = parser.get_method()

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete += 1


@given(body=st.binary(max_size=200), deadline=st.integers(1, 10**6))
def test_a_request_is_one_http_message_with_its_deadline(body: bytes, deadline: int) -> None:
    target = Target.parse("http://127.0.0.1:8080", {"X-API-Key": "k1"})
    parsed = Parsed(target.request("recommend", "/v1/recommend", body).render(deadline))
    assert (parsed.complete, parsed.method, parsed.url, parsed.body) == (1, b"POST", b"/v1/recommend", body)
    assert parsed.headers[b"x-deadline-ms"] == str(deadline).encode()
    assert parsed.headers[b"x-api-key"] == b"k1"
    assert parsed.headers[b"host"] == b"127.0.0.1:8080"


@pytest.mark.parametrize(
    "url",
    ["https://h:1", "h:1", "http://", "http://h:1/path", "http://h:1?q", "http://u:p@h:1", "http://h:x", "http://[h"],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(SettingsError) as error:
        Target.parse(url)
    assert (error.value.field, error.value.value) == ("url", url)


def test_the_parts_of_an_address() -> None:
    assert Target.parse("http://example:81/").url == "http://example:81"
    assert (Target.parse("http://example").host, Target.parse("http://example").port) == ("example", 80)
    assert Target.parse("http://[::1]:8080").url == "http://[::1]:8080"


@pytest.mark.parametrize("header", [("X-Key", "a\r\nX-Other: b"), ("X:Key", "a"), ("", "a")])
def test_a_header_cannot_bring_another(header: tuple[str, str]) -> None:
    with pytest.raises(SettingsError, match="not a header"):
        Target.parse("http://h:1", dict([header]))


def test_values_of_headers_are_not_shown() -> None:
    assert "s3cret" not in repr(Target.parse("http://h:1", {"X-API-Key": "s3cret"}))
