"""Routes for probes: is the process alive, and is everything there that it stands on?"""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Response

from app.api.problems import problem
from app.api.schemas import HealthOut, ReadyOut
from app.api.services import Machines, Services
from salem import __version__
from salem.errors import SalemError, Unavailable

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> HealthOut:
    """The process answers. Asks nothing else, needs no key and no free thread."""
    return HealthOut(status="alive", version=__version__)


@router.get("/readyz", response_model=ReadyOut, responses={503: {"description": "Names what is missing"}})
def readyz(machines: Machines) -> ReadyOut | Response:
    """SQL, Redis and at least one live worker are there; 503 names those that are not."""
    checks = {name: _outcome(check) for name, check in _checks(machines).items()}
    missing = [{"detail": f"{name}: {outcome}"} for name, outcome in checks.items() if outcome != "ok"]
    if not missing:
        return ReadyOut(status="ready", checks=checks)
    return problem(
        status=Unavailable.status,
        code=Unavailable.code,
        title="The service is not ready",
        detail="; ".join(entry["detail"] for entry in missing),
        remedy="`salem doctor` on the server says how to fix it",
        errors=missing,
        headers={"Retry-After": "5"},
    )


def _checks(machines: Services) -> dict[str, Callable[[], None]]:
    def live_worker() -> None:
        if machines.queue.num_workers() == 0:
            raise Unavailable("none is alive; `salem worker` starts one")

    return {"sql": machines.registry.ping, "redis": machines.queue.ping, "worker": live_worker}


def _outcome(check: Callable[[], None]) -> str:
    try:
        check()
    except SalemError as error:
        return error.message
    return "ok"
