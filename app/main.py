"""The API process: builds the app, opens and closes its services, and serves it.

`create_app` is the factory. `main` serves the app on a socket that the supervisor has bound, or on its own.
To add a route, add its module's name to `ROUTES`.
"""

from __future__ import annotations

import argparse
import importlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

from app.api import problems
from app.api.middleware import ApiKey, BodyLimit, RequestContext
from app.api.services import Services
from app.service.address import refuse_open_address
from app.service.reconciler import Reconciler
from salem import __version__
from salem.logs import configure_logging
from salem.settings import Settings

GRACEFUL_SHUTDOWN_S = 3

ROUTES = (
    "reference_sets",
    "models",
    "versions",
    "aliases",
    "entries",
    "removals",
    "edits",
    "editors",
    "jobs",
    "deletions",
    "predict",
    "health",
)
"""Modules of `app.api` with a `router`."""


def create_app(settings: Settings) -> FastAPI:
    """The whole API. It opens nothing before its lifespan starts.

    Raises:
        Misconfigured: other machines can reach the address, and no API key is set.
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
    for name in ROUTES:
        app.include_router(importlib.import_module(f"app.api.{name}").router)
    return app


def main() -> None:
    """Serve until SIGTERM or SIGINT. `--fd` is a socket that is already bound."""
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
