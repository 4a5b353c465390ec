"""The API process: builds the app, opens and closes what it stands on, serves it.

Knows every route and machine by name only. `create_app` is the factory; `main` serves it on a socket that the
supervisor has bound, or on one of its own.
"""

from __future__ import annotations

import argparse
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

from app.api import editors, edits, entries, health, jobs, models, predict, problems
from app.api.middleware import ApiKey, BodyLimit, RequestContext
from app.api.services import Services
from app.service.address import refuse_open_address
from app.service.reconciler import Reconciler
from salem import __version__
from salem.logs import configure_logging
from salem.settings import Settings

GRACEFUL_SHUTDOWN_S = 3


def create_app(settings: Settings) -> FastAPI:
    """The whole API. Opens nothing before its lifespan starts.

    Raises:
        Misconfigured: the address is open to others and there is no key.
    """
    refuse_open_address(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services = Services.open(settings)
        reconciler = Reconciler(settings, services.registry, services.queue, services.blobs)
        app.state.services = services
        reconciler.start()
        try:
            yield
        finally:
            reconciler.stop()
            services.close()

    app = FastAPI(
        title="Salem",
        version=__version__,
        summary="Fixes wrong answers of models in production: small, measured, versioned weight deltas.",
        lifespan=lifespan,
    )
    problems.install(app)
    app.add_middleware(BodyLimit, max_body_bytes=settings.max_body_bytes)
    if settings.api_key is not None:
        app.add_middleware(ApiKey, key=settings.api_key.get_secret_value())
    app.add_middleware(RequestContext)  # added last: outermost
    for routes in (models, entries, edits, editors, jobs, predict, health):
        app.include_router(routes.router)
    return app


def main() -> None:
    """Serve until SIGTERM or SIGINT; `--fd` hands over a socket that is bound already."""
    parser = argparse.ArgumentParser(prog="python -m app.main", description="Serve the API in this process.")
    parser.add_argument("--fd", type=int, help="file descriptor of a bound TCP socket")
    fd = parser.parse_args().fd
    settings = Settings()
    configure_logging(settings)
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_S,
    )
    uvicorn.Server(config).run(sockets=None if fd is None else [socket.socket(fileno=fd)])


if __name__ == "__main__":
    main()
