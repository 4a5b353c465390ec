"""Middleware for every request: request id, log line, API key, and body size.

Plain ASGI. Must not know routes or records.

We do not use FastAPI's `max_body_size`: if the Content-Length is too large, it answers in plain text instead
of a problem document.
"""

from __future__ import annotations

import hmac
import re
import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import from_http_exception, from_salem_error, internal_error
from salem.errors import Unauthorized

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
OPEN_PATHS = frozenset({"/healthz"})
QUIET_PATHS = frozenset({"/healthz", "/readyz"})


class RequestContext:
    """Gives each request an id (the client's, if well-formed), logs it, and turns a crash into a 500."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        offered = Headers(scope=scope).get("x-request-id", "")
        request_id = offered if REQUEST_ID.fullmatch(offered) else uuid.uuid4().hex
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        started = time.monotonic()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            log = structlog.get_logger()
            try:
                await self.app(scope, receive, send_with_id)
            except Exception:
                log.exception("unexpected error", method=scope["method"], path=scope["path"])
                if (
                    status is not None
                ):  # the response has started: only closing the connection tells the client
                    raise
                await internal_error()(scope, receive, send_with_id)
            if scope["path"] not in QUIET_PATHS:
                seconds = round(time.monotonic() - started, 4)
                log.info(
                    "request", method=scope["method"], path=scope["path"], status=status, seconds=seconds
                )


class ApiKey:
    """Requires `Authorization: Bearer <key>` before it reads the body."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app = app
        self.key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._allows(scope):
            await self.app(scope, receive, send)
            return
        refusal = Unauthorized(
            "this service requires an API key", remedy="Send the header Authorization: Bearer <key>"
        )
        await from_salem_error(refusal)(scope, receive, send)

    def _allows(self, scope: Scope) -> bool:
        scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        # headers arrive as latin-1; compare_digest refuses text that is not ASCII
        same = hmac.compare_digest(token.strip().encode("latin-1"), self.key)
        return scheme.lower() == "bearer" and same


class BodyLimit:
    """Refuses a body above the limit: at once if its length is declared, otherwise once it gets too long."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared[:19]) > self.max_body_bytes:
            await from_http_exception(self._too_large())(scope, receive, send)
            return
        num_bytes = 0

        async def receive_counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.max_body_bytes:
                raise self._too_large()
            return message

        await self.app(scope, receive_counted, send)

    def _too_large(self) -> HTTPException:
        return HTTPException(
            413, f"the body is larger than {self.max_body_bytes} bytes; send several smaller requests"
        )
