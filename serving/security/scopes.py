"""Which scope each route wants; a route that is not here does not exist for a server with keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from starlette.convertors import StringConvertor, register_url_convertor
from starlette.routing import compile_path

from serving.security.keys import Scope

if TYPE_CHECKING:
    import re
    from collections.abc import Mapping


class UserConvertor(StringConvertor):
    """The id of a user in a path: whatever is in it, slashes too, because everybody may be forgotten."""

    regex = r"export|[\s\S]+(?<!/export)"  # the end of another path


register_url_convertor("user", UserConvertor())
USER_ID: Final = "{user_id:user}"
"""Of a path's template."""

OPEN: Final = None
"""No key is needed: probes of a load balancer, and what the source says anyway."""

SCOPES: Final[Mapping[tuple[str, str], Scope | None]] = {
    ("GET", "/healthz"): OPEN,
    ("GET", "/readyz"): OPEN,
    ("GET", "/openapi.json"): OPEN,
    ("HEAD", "/openapi.json"): OPEN,
    ("GET", "/docs"): OPEN,
    ("HEAD", "/docs"): OPEN,
    ("GET", "/docs/oauth2-redirect"): OPEN,
    ("HEAD", "/docs/oauth2-redirect"): OPEN,
    ("GET", "/metrics"): Scope.METRICS,
    ("POST", "/v1/recommend"): Scope.RECOMMEND,
    ("POST", "/v1/similar"): Scope.RECOMMEND,
    ("POST", "/v1/search"): Scope.RECOMMEND,
    ("POST", "/v1/events"): Scope.EVENTS,
    ("PUT", "/v1/items/{item_id}"): Scope.ADMIN,
    ("DELETE", "/v1/items/{item_id}"): Scope.ADMIN,
    ("GET", f"/v1/users/{USER_ID}/export"): Scope.ADMIN,
    ("DELETE", f"/v1/users/{USER_ID}"): Scope.ADMIN,
    ("GET", "/v1/admin/bundles"): Scope.ADMIN,
    ("POST", "/v1/admin/bundles/reload"): Scope.ADMIN,
    ("POST", "/v1/admin/bundles/rollback"): Scope.ADMIN,
}
"""(method, path template) to what a key must have."""

Rules = dict[str, Scope | None]
"""Method to scope, of one path."""


class ScopeTable:
    """Looks up the rules of a path; templates are matched as the framework's router matches them.

    Args:
        scopes: see `SCOPES`.
    """

    def __init__(self, scopes: Mapping[tuple[str, str], Scope | None] = SCOPES) -> None:
        self._exact: dict[str, Rules] = {}
        templates: dict[str, Rules] = {}
        for (method, template), scope in scopes.items():
            kind = templates if "{" in template else self._exact
            kind.setdefault(template, {})[method] = scope
        self._templates: list[tuple[re.Pattern[str], Rules]] = [
            (compile_path(template)[0], rules) for template, rules in templates.items()
        ]

    def rules(self, path: str) -> Rules:
        """What each method of a path wants; empty for a path that nobody declared."""
        if (exact := self._exact.get(path)) is not None:
            return exact
        found: Rules = {}
        for pattern, rules in self._templates:
            if pattern.match(path):
                found = {**rules, **found}  # the first template wins, as in the router
        return found


def describe(document: dict[str, Any], *, keys: bool) -> dict[str, Any]:
    """Write into an OpenAPI document which key each operation wants, and how it is refused.

    Args:
        document: of the application; changed and returned.
        keys: whether this server asks for them; else the document says that none will do, too.
    """
    instead: list[dict[str, list[str]]] = [] if keys else [{}]
    schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
    schemes["ApiKey"] = {
        "type": "http",
        "scheme": "bearer",
        "description": "A key made with `windfire keys create`. A server without a key file asks for none.",
    }
    for (method, template), scope in SCOPES.items():
        operation = document["paths"].get(template.replace(":user", ""), {}).get(method.lower())
        if operation is None:  # the document itself, for one
            continue
        operation["security"] = [] if scope is None else [{"ApiKey": [scope.value]}, *instead]
        if scope is not None:
            operation["responses"] |= _refusals(scope)
    return document


def _refusals(scope: Scope) -> dict[str, Any]:
    reference = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    words = {
        "401": "No key, or one that is unknown or has expired.",
        "403": f"The key lacks the scope {scope.value}.",
        "429": "The key asks more often than it may; try again after Retry-After.",
    }
    return {status: {"description": said, "content": reference} for status, said in words.items()}
