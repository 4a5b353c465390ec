"""Turns every error of the API into RFC 9457 problem+json. Must not know any route.

    {"type", "title", "status", "detail", "code", "errors": [{"pointer", "detail"}], "request_id", "remedy"}

`errors[].pointer` is a JSON pointer into the body. A bad header, query, or path parameter has
`parameter` and `in` instead. `detail` starts with the first problem, for clients that print one line.
An unexpected exception becomes a 500 that gives only its request id; the traceback is in the log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from salem.errors import MAX_PLACES, InvalidRequest, Pointer, SalemError, Unauthorized

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class ProblemKind:
    """What all problems of one kind share. A class of `salem.errors` has the same three attributes."""

    status: int
    code: str
    title: str


HTTP_PROBLEMS = {
    kind.status: kind
    for kind in (
        ProblemKind(400, "malformed_body", "The request body cannot be read"),
        ProblemKind(404, "not_found", "Path not found"),
        ProblemKind(405, "method_not_allowed", "This path does not support that method"),
        ProblemKind(413, "body_too_large", "The request body is too large"),
        ProblemKind(415, "unsupported_media_type", "This path does not read that content type"),
    )
}
MALFORMED_JSON = ProblemKind(400, "malformed_json", "The request body is not JSON")


def problem(
    kind: ProblemKind | type[SalemError],
    detail: str,
    *,
    remedy: str | None = None,
    errors: Sequence[Mapping[str, Any]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """One problem as a response. The request id comes from the log context."""
    body = {
        "type": "about:blank",
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "code": kind.code,
        "errors": [dict(error) for error in errors],
        "request_id": structlog.contextvars.get_contextvars().get("request_id"),
        "remedy": remedy,
    }
    # ASCII: quoted texts may contain half of a surrogate pair, which UTF-8 cannot encode
    content = json.dumps(body).encode("ascii")
    return Response(content, status_code=kind.status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def from_salem_error(error: SalemError) -> Response:
    """The problem of one of Salem's errors."""
    errors = [{"pointer": place.pointer, "detail": place.detail} for place in error.errors]
    headers: dict[str, str] = {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    return problem(type(error), error.message, remedy=error.remedy, errors=errors, headers=headers)


def from_http_exception(error: HTTPException) -> Response:
    """The problem of a Starlette error: unknown path, wrong method, or a body that cannot be read."""
    phrase = HTTPStatus(error.status_code).phrase
    unnamed = ProblemKind(error.status_code, phrase.lower().replace(" ", "_"), phrase)
    kind = HTTP_PROBLEMS.get(error.status_code, unnamed)
    return problem(kind, str(error.detail), headers=error.headers)


def internal_error() -> Response:
    """The problem of an unexpected exception. It reveals nothing to the client."""
    return problem(
        SalemError,
        "unexpected error; the server's log has the traceback",
        remedy="Include the request_id when you report this",
    )


def from_validation_error(error: RequestValidationError, content_type: str) -> Response:
    """The problem of a request that does not fit the schema, has the wrong content type, or is not JSON."""
    found = error.errors()
    first = found[0] if found else {}
    if first.get("type") == "json_invalid":
        return _malformed_json(str(error.body), int(first["loc"][-1]), str(first["ctx"]["error"]))
    if isinstance(error.body, bytes):
        return problem(
            HTTP_PROBLEMS[415],
            f'the body is "{content_type[:80] or "unlabeled"}"; this path reads application/json',
            remedy="Send the header Content-Type: application/json",
        )
    errors = [_place(entry, error.body) for entry in found[:MAX_PLACES]]
    return problem(InvalidRequest, _summary(errors, len(found)), errors=errors)


def pointer_of(location: Sequence[str | int], body: Any) -> str:
    """A JSON pointer (RFC 6901) from pydantic's location.

    Pydantic adds the tag of a union's member to the location ("source", "folder", "path"). A part that is not
    in the body, and is not the last one (a missing field), is such a tag and is left out.
    """
    node, parts = body, []
    for position, part in enumerate(location):
        if isinstance(node, dict) and (part in node or position == len(location) - 1):
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
            continue
        parts.append(str(part).replace("~", "~0").replace("/", "~1"))
    return "".join(f"/{part}" for part in parts)


def invalid_request(places: Sequence[Pointer]) -> InvalidRequest:
    """The error of a request with these problems. Its message shows the first."""
    named = places[:MAX_PLACES]
    return InvalidRequest(_summary([vars(place) for place in named], len(places)), errors=named)


def install(app: FastAPI) -> None:
    """Make the app answer all errors with problems. The middleware handles unexpected exceptions."""

    async def on_salem_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, SalemError)
        log = structlog.get_logger()
        if error.status >= 500:
            log.error("request failed", code=error.code, detail=error.message, exc_info=error)
        else:
            log.info("request refused", code=error.code)  # no message: it may quote the client's texts
        return from_salem_error(error)

    async def on_validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return from_validation_error(error, request.headers.get("content-type", ""))

    async def on_http_exception(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return from_http_exception(error)

    app.add_exception_handler(SalemError, on_salem_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_exception)


def _malformed_json(text: str, position: int, reason: str) -> Response:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    return problem(MALFORMED_JSON, f"line {line}, column {column}: {reason}")


def _place(entry: Mapping[str, Any], body: Any) -> dict[str, str]:
    """One of pydantic's errors, without the input, which may be large or secret."""
    where, *location = entry["loc"]
    detail = str(entry["msg"]).removeprefix("Value error, ")  # our own checks
    if where == "body":
        return {"pointer": pointer_of(location, body), "detail": detail}
    return {"parameter": ".".join(str(part) for part in location), "in": str(where), "detail": detail}


def _summary(errors: Sequence[Mapping[str, str]], num_found: int) -> str:
    """The first problem with its place, and the number of other problems."""
    if not errors:
        return InvalidRequest.title
    first = errors[0]
    place = first.get("pointer") or first.get("parameter") or "the body"
    more = f" (and {num_found - 1} more)" if num_found > 1 else ""
    return f"{place}: {first['detail']}{more}"
