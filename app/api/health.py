"""Routes for health probes: is the process alive, and can it reach what it depends on?"""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Response

from app.api.problems import ProblemKind, problem
from app.api.schemas import HealthOut, ReadyOut
from app.api.services import Services, ServicesDep
from salem import __version__
from salem.errors import SalemError, Unavailable

router = APIRouter(tags=["health"])

NOT_READY = ProblemKind(Unavailable.status, Unavailable.code, "The service is not ready")


@router.get("/healthz")
async def healthz() -> HealthOut:
    """Liveness: the process answers. Needs no API key and no free thread."""
    return HealthOut(status="alive", version=__version__)


@router.get(
    "/readyz", response_model=ReadyOut, responses={503: {"description": "Names what cannot be reached"}}
)
def readyz(services: ServicesDep) -> ReadyOut | Response:
    """Readiness: SQL, Redis, and at least one live worker are reachable. 503 names the ones that are not."""
    checks = {name: _outcome(check) for name, check in _checks(services).items()}
    missing = [{"detail": f"{name}: {outcome}"} for name, outcome in checks.items() if outcome != "ok"]
    if not missing:
        return ReadyOut(status="ready", checks=checks)
    return problem(
        NOT_READY,
        "; ".join(entry["detail"] for entry in missing),
        remedy="Run `salem doctor` on the server; it says how to fix this",
        errors=missing,
        headers={"Retry-After": "5"},
    )


def _checks(services: Services) -> dict[str, Callable[[], None]]:
    def live_worker() -> None:
        if services.queue.num_workers() == 0:
            raise Unavailable("no worker is alive; start one with `salem worker`")

    return {"sql": services.registry.ping, "redis": services.queue.ping, "worker": live_worker}


def _outcome(check: Callable[[], None]) -> str:
    try:
        check()
    except SalemError as error:
        return error.message
    return "ok"
