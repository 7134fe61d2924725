"""Two rules that reviews forget: no middleware that hides a disconnect, no secret compared by `==`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCES = [
    path for folder in ("serving", "windfire", "feature_store") for path in sorted((ROOT / folder).rglob("*.py"))
]
SECRET = re.compile(r"secret|password|passwd|token|digest|hash|hmac|signature|credential|api_?key")
ALLOWED = {"tokens", "tokenizer_version", "token_shape", "sha256", "n_tokens", "max_tokens"}  # of models, no secrets


def names(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            yield inner.id
        elif isinstance(inner, ast.Attribute):
            yield inner.attr
        elif isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield inner.value


def compared_secrets(source: str) -> list[int]:
    """Lines that compare something with the name of a secret by == or !=."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare) and any(isinstance(kind, ast.Eq | ast.NotEq) for kind in node.ops):
            words = {name.lower() for side in (node.left, *node.comparators) for name in names(side)}
            if any(SECRET.search(word) for word in words - ALLOWED):
                found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_secrets_are_compared_in_constant_time(path: Path) -> None:
    assert compared_secrets(path.read_text()) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_middleware_is_pure_asgi(path: Path) -> None:
    used = {name for name in names(ast.parse(path.read_text())) if name == "BaseHTTPMiddleware"}
    imported = re.search(r"^\s*(from|import) .*middleware\.base", path.read_text(), re.MULTILINE)
    assert (used, imported) == (set(), None)


@pytest.mark.parametrize(
    "line",
    [
        "if key.secret == given: pass",
        "ok = given != self.password",
        "return_value = hashed == kept_hash",
        "same = sha(token).hexdigest() == kept",
        "same = kept == headers['X-Api-Key'.lower()] == api_key",
        "same = [hmac.digest(a) == b for a in c]",
    ],
)
def test_the_rule_finds_what_it_forbids(line: str) -> None:
    assert compared_secrets(line) == [1]
