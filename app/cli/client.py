"""The HTTP client of the command line. Must not know how anything is printed."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import httpx

from salem.settings import Settings

POLL_S = 0.5
ENDED = frozenset({"succeeded", "failed", "cancelled"})


class ServiceError(Exception):
    """The service refused the request, or is out of reach. Has the messages to print."""

    def __init__(self, message: str, remedy: str | None = None, places: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.places = places


class Client:
    """A connection to one service, with its API key."""

    def __init__(self, url: str, api_key: str | None = None, *, timeout_s: float = 120.0) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = url
        # trust_env=False: requests to a loopback address must not go through a proxy
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, **query: Any) -> Any:
        return self._send(
            "GET", path, params={key: value for key, value in query.items() if value is not None}
        )

    def get_all(self, path: str, cursor: str, **query: Any) -> list[dict[str, Any]]:
        """All items of a list, page by page. `cursor` is the field that the next page starts after."""
        items: list[dict[str, Any]] = []
        page: dict[str, Any] = {"has_more": True}
        while page["has_more"]:
            page = self.get(path, **query, after=items[-1][cursor] if items else None)
            items += page["data"]
        return items

    def post(self, path: str, body: Any = None, key: str | None = None) -> Any:
        """With an idempotency key, repeating the request returns the same job."""
        headers = {"Idempotency-Key": key} if key else None
        return self._send("POST", path, json=body, headers=headers)

    def put(self, path: str, body: Any) -> Any:
        return self._send("PUT", path, json=body)

    def upload(self, path: str, data: bytes) -> Any:
        """POST the content of a JSON Lines file."""
        return self._send("POST", path, content=data, headers={"Content-Type": "application/x-ndjson"})

    def wait_for_job(self, job_id: str, on_poll: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Poll a job until it has ended. Calls `on_poll` with each state, and returns the last."""
        while True:
            job: dict[str, Any] = self.get(f"/jobs/{job_id}")
            on_poll(job)
            if job["state"] in ENDED:
                return job
            time.sleep(POLL_S)

    def _send(self, method: str, path: str, **request: Any) -> Any:
        """Send one request.

        Raises:
            ServiceError: the service is out of reach, or refused the request.
        """
        try:
            response = self._http.request(method, path, **request)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServiceError(
                f"no service answers at {self._url} ({type(error).__name__})",
                remedy="Start the service with `salem serve`, or set its address with --url or SALEM_URL",
            ) from error
        if response.is_success:
            return response.json()
        raise _as_error(response)


def client_for(url: str | None) -> Client:
    """A client of the service at `url`, by default the one in this machine's settings, with SALEM_API_KEY."""
    settings = Settings()
    key = settings.api_key.get_secret_value() if settings.api_key else None
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return Client(url or f"http://{host}:{settings.port}", key)


def _as_error(response: httpx.Response) -> ServiceError:
    try:
        problem = response.json()
        places = tuple(
            f"{place.get('pointer') or place.get('parameter') or 'request'}: {place['detail']}"
            for place in problem["errors"]
        )
        return ServiceError(problem["detail"], problem["remedy"], places)
    except (ValueError, KeyError, TypeError):
        return ServiceError(
            f"the server at this address answered {response.status_code}, but is not Salem", "Check the URL"
        )
