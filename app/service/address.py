"""The address of the API: who can reach it, and the socket that listens on it."""

from __future__ import annotations

import errno
import ipaddress
import socket

from salem.errors import Conflict, Misconfigured
from salem.settings import Settings


def refuse_open_address(settings: Settings) -> None:
    """Refuse an address that other machines can reach without a key: they could change answers.

    Raises:
        Misconfigured: `host` is not a loopback address and `api_key` is not set, or `api_key` is empty.
    """
    if settings.api_key is not None and not settings.api_key.get_secret_value():
        raise Misconfigured("SALEM_API_KEY is empty", remedy="Set it to a value, or unset it")
    if settings.api_key is None and not is_loopback(settings.host):
        raise Misconfigured(
            f"other machines can reach {settings.host}, and no API key is set",
            remedy="Set SALEM_API_KEY, for example to `openssl rand -hex 32`, or bind 127.0.0.1",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address. A name other than localhost counts as open."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on the address.

    Raises:
        Conflict: the port is in use.
        Misconfigured: the address does not belong to this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Conflict(
                f"port {port} of {host} is in use",
                remedy="Stop what listens there, or set another SALEM_PORT",
            ) from error
        raise Misconfigured(
            f"cannot bind {host}:{port}: {error.strerror}", remedy="Set another SALEM_HOST or SALEM_PORT"
        ) from error


def display_host(host: str) -> str:
    """The host for a URL that works on this machine."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1" if host == "0.0.0.0" else "[::1]"
    return f"[{host}]" if ":" in host else host
