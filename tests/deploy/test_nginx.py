from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from pydantic import TypeAdapter

from serving.errors import NOT_FOUND, RETRY_AFTER_SECONDS, TOO_LARGE, UNAVAILABLE, ErrorBody, Problem
from serving.middleware import MAX_BODY_BYTES


@pytest.fixture(scope="module")
def text() -> str:
    return re.sub(r"#.*", "", (Path(__file__).resolve().parents[2] / "deploy/nginx/nginx.conf").read_text())


def _values(text: str, name: str) -> list[str]:
    return re.findall(rf"^\s*{name}\s+([^;]+);", text, re.MULTILINE)


def _seconds(text: str, name: str) -> float:
    return float(_values(text, name)[0].removesuffix("s"))


def test_the_limit_of_a_body_is_the_services(text: str) -> None:
    assert _values(text, "client_max_body_size") == [str(MAX_BODY_BYTES)]
    assert _values(text, "client_body_buffer_size") == [str(MAX_BODY_BYTES)]  # a body that is let in stays in memory


@pytest.mark.parametrize(
    ("problem", "status"), [(TOO_LARGE, TOO_LARGE.status), (NOT_FOUND, NOT_FOUND.status), (UNAVAILABLE, 503)]
)
def test_errors_have_the_services_envelope(text: str, problem: Problem, status: int) -> None:
    bodies = {int(code): json.loads(body) for code, body in re.findall(r"return (4\d\d|5\d\d) '(.*)';", text)}
    answered = ErrorBody.model_validate(bodies[status])
    assert (answered.code, answered.retryable) == (problem.code, problem.retryable)


def test_errors_say_what_the_service_says(text: str) -> None:
    assert TOO_LARGE.description in text
    assert NOT_FOUND.description in text
    assert f"Retry-After {RETRY_AFTER_SECONDS} always" in text
    assert "error_page 502 504 = @unavailable;" in text  # the = lets the location's own status through


def test_what_cannot_be_read_is_answered_without_its_path(text: str) -> None:
    """nginx refuses to go on in a named location as long as it knows no path, and then answers 500 in HTML."""
    pages = [page.split() for page in _values(text, "error_page")]
    places = {code: place for *codes, place in pages for code in codes if code != "="}
    unread = {places.get(code, "HTML") for code in ("400", "405", "414", "494", "501", "505")}
    assert len(unread) == 1
    place = unread.pop()
    assert re.search(rf"location = {re.escape(place)} \{{\s*return 400 '", text)


def test_nobody_may_dawdle(text: str) -> None:
    for name in ("client_header_timeout", "client_body_timeout", "send_timeout"):
        assert 0 < _seconds(text, name) <= 10
    assert _values(text, "reset_timedout_connection") == ["on"]
    assert _values(text, "proxy_request_buffering") == []  # on: a front-end never waits for a slow client


def test_connections_are_kept_and_given_up_before_the_front_end_closes_them(text: str) -> None:
    upstream = text[text.index("upstream frontends") : text.index("server {")]
    config = uvicorn.Config(lambda: None)
    assert _seconds(upstream, "keepalive_timeout") < config.timeout_keep_alive
    assert int(_values(upstream, "keepalive")[0]) > 0
    assert _values(text, "proxy_http_version") == ["1.1"]
    assert 'proxy_set_header Connection "";' in text


def test_a_post_that_somebody_received_is_not_sent_again(text: str) -> None:
    (conditions,) = _values(text, "proxy_next_upstream")
    assert set(conditions.split()) == {"error", "timeout"}
    assert "non_idempotent" not in text


def test_it_waits_longer_than_the_deadline(text: str, services: dict[str, Any]) -> None:
    deadline = TypeAdapter(timedelta).validate_python(services["frontend"]["environment"]["WINDFIRE_DEADLINE"])
    assert deadline.total_seconds() < _seconds(text, "proxy_read_timeout")


def test_it_sees_every_replica(text: str, services: dict[str, Any]) -> None:
    command = services["frontend"]["command"]
    port = command[command.index("--port") + 1]
    assert re.search(rf"^\s*server frontend:{port} resolve ", text, re.MULTILINE)
    assert _values(text, "resolver")[0].startswith("127.0.0.11 ")
    assert "zone frontends " in text  # shared by the workers, and needed by resolve
    assert "proxy_pass http://frontends;" in text
    assert services["nginx"]["ports"] == ["127.0.0.1:8080:8080"]
    assert _values(text, "listen")[0].startswith("8080 ")


def test_logs_name_no_user_and_metrics_stay_inside(text: str) -> None:
    logged = text[text.index("log_format") : text.index("access_log")]
    assert not {"$request", "$request_uri", "$uri", "$args", "$http_referer"} & set(re.findall(r"\$\w+", logged))
    assert re.search(r"location = /metrics \{\s*return 404", text)
    assert "error_log stderr crit;" in text
