"""Every error that leaves the API, as RFC 9457 problem+json.

Knows the tree of errors, FastAPI's validation errors and Starlette's HTTP errors. Does not know any route.

    {"type", "title", "status", "detail", "code", "errors": [{"pointer", "detail"}], "request_id", "remedy"}

`errors[].pointer` is a JSON pointer into the body; a bad header, query or path parameter has `parameter` and
`in` instead. `detail` starts with the first place, for clients that print one line.
An unknown exception becomes a 500 that says nothing but its request id; the trace is in the log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from salem.errors import MOST_PLACES, InvalidRequest, Pointer, SalemError, Unauthorized

MEDIA_TYPE = "application/problem+json"

HTTP_CODES = {
    400: ("malformed_body", "The request body cannot be read"),
    404: ("not_found", "There is no such path"),
    405: ("method_not_allowed", "This path does not know that method"),
    413: ("body_too_large", "The request body is too large"),
    415: ("unsupported_media_type", "The request body is of a type that this path does not read"),
}


def problem(
    *,
    status: int,
    code: str,
    title: str,
    detail: str,
    remedy: str | None = None,
    errors: Sequence[Mapping[str, Any]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """One problem as a response; the request id is the one bound to the log context."""
    body = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "errors": [dict(error) for error in errors],
        "request_id": structlog.contextvars.get_contextvars().get("request_id"),
        "remedy": remedy,
    }
    # ASCII: words of the client may hold what UTF-8 cannot say, such as half of a surrogate pair
    content = json.dumps(body).encode("ascii")
    return Response(content, status_code=status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def from_salem_error(error: SalemError) -> Response:
    """A problem in the words of the error; the status and the code are its class's."""
    errors = [{"pointer": place.pointer, "detail": place.detail} for place in error.errors]
    headers: dict[str, str] = {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    return problem(
        status=error.status,
        code=error.code,
        title=error.title,
        detail=error.message,
        remedy=error.remedy,
        errors=errors,
        headers=headers,
    )


def from_http_exception(error: HTTPException) -> Response:
    """Starlette's own errors: unknown path, wrong method, a body that is too large or cannot be parsed."""
    phrase = HTTPStatus(error.status_code).phrase
    code, title = HTTP_CODES.get(error.status_code, (phrase.lower().replace(" ", "_"), phrase))
    return problem(
        status=error.status_code, code=code, title=title, detail=str(error.detail), headers=error.headers
    )


def internal_error() -> Response:
    """The answer to an exception that nobody expected; it tells the client nothing about it."""
    return problem(
        status=SalemError.status,
        code=SalemError.code,
        title=SalemError.title,
        detail="An unexpected error was recorded in the server's log",
        remedy="Quote the request_id when you report it",
    )


def from_validation_error(error: RequestValidationError, content_type: str) -> Response:
    """What does not fit the schema; a wrong content type and broken JSON get their own words."""
    found = error.errors()
    first = found[0] if found else {}
    if first.get("type") == "json_invalid":
        return _malformed_json(str(error.body), int(first["loc"][-1]), str(first["ctx"]["error"]))
    if isinstance(error.body, bytes):
        return problem(
            status=415,
            code=HTTP_CODES[415][0],
            title=HTTP_CODES[415][1],
            detail=f'the body is "{content_type[:80] or "unlabeled"}"; this path reads application/json',
            remedy="Send the header Content-Type: application/json",
        )
    errors = [_place(entry, error.body) for entry in found[:MOST_PLACES]]
    return problem(
        status=InvalidRequest.status,
        code=InvalidRequest.code,
        title=InvalidRequest.title,
        detail=_summary(errors, len(found)),
        errors=errors,
    )


def pointer_of(location: Sequence[str | int], body: Any) -> str:
    """A JSON pointer (RFC 6901) from pydantic's location.

    Pydantic puts the tag of a union's member into the location ("source", "folder", "path"); a part that is
    not in the body, and is not the last one (a missing field), is such a tag and is left out.
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
    """The error of a request with these bad places, in the words of the first."""
    named = places[:MOST_PLACES]
    return InvalidRequest(_summary([vars(place) for place in named], len(places)), errors=named)


def install(app: FastAPI) -> None:
    """Make the app answer with problems only. Unknown exceptions are the middleware's."""

    async def on_salem_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, SalemError)
        log = structlog.get_logger()
        if error.status >= 500:
            log.error("request failed", code=error.code, detail=error.message, exc_info=error)
        else:
            log.info("request refused", code=error.code)  # its words may quote the client's
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
    return problem(
        status=400,
        code="malformed_json",
        title="The request body is not JSON",
        detail=f"line {line}, column {column}: {reason}",
    )


def _place(entry: Mapping[str, Any], body: Any) -> dict[str, str]:
    """One entry of pydantic's list, without the input: a client's text may be large or secret."""
    where, *location = entry["loc"]
    detail = str(entry["msg"]).removeprefix("Value error, ")  # what our own checks say, in their words
    if where == "body":
        return {"pointer": pointer_of(location, body), "detail": detail}
    return {"parameter": ".".join(str(part) for part in location), "in": str(where), "detail": detail}


def _summary(errors: Sequence[Mapping[str, str]], num_found: int) -> str:
    """The first problem, with its place, and how many more of all that were found there are."""
    if not errors:
        return InvalidRequest.title
    first = errors[0]
    place = first.get("pointer") or first.get("parameter") or "the body"
    more = f" (and {num_found - 1} more)" if num_found > 1 else ""
    return f"{place}: {first['detail']}{more}"
