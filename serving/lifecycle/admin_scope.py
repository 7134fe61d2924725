"""Who may ask the administrative routes: one dependency, in one place."""

from __future__ import annotations

from ipaddress import ip_address

from starlette.exceptions import HTTPException
from starlette.requests import Request  # FastAPI reads the annotation when it runs


async def admin_scope(request: Request) -> None:
    """Let a request through: with keys the scope was asked (`serving.scopes`), else it must be from this machine.

    Raises:
        HTTPException: 403, it comes from elsewhere, or nobody can say from where.
    """
    if request.state.services.keys is not None:
        return
    if request.client is None or not _is_loopback(request.client.host):
        raise HTTPException(403, "only clients of this machine may ask this")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
