"""Who may ask the administrative routes of a server without keys; with keys their scope `admin` has decided before."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated

from fastapi import Depends
from starlette.exceptions import HTTPException
from starlette.requests import Request  # FastAPI reads the annotation when it runs

from serving.services import Services, services_of


async def admin_scope(request: Request, services: Annotated[Services, Depends(services_of)]) -> None:
    """Let a request through if a key was asked for, or if it comes from this machine.

    Raises:
        HTTPException: 403, it comes from elsewhere, or nobody can say from where.
    """
    if services.keys is None and (request.client is None or not _is_loopback(request.client.host)):
        raise HTTPException(403)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
