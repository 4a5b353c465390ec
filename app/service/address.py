"""The address of the API: who can reach it, and the socket that holds it."""

from __future__ import annotations

import errno
import ipaddress
import socket

from salem.errors import Conflict, Misconfigured
from salem.settings import Settings


def refuse_open_address(settings: Settings) -> None:
    """Anyone who reaches the API can change what models answer: beyond this machine a key is needed.

    Raises:
        Misconfigured: `host` is not a loopback address and `api_key` is not set, or is empty.
    """
    if settings.api_key is not None and not settings.api_key.get_secret_value():
        raise Misconfigured("SALEM_API_KEY is set but empty", remedy="Give it a value, or unset it")
    if settings.api_key is None and not is_loopback(settings.host):
        raise Misconfigured(
            f"{settings.host} can be reached from other machines, and no API key is set",
            remedy="Set SALEM_API_KEY, for example to what `openssl rand -hex 32` prints, or bind 127.0.0.1",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address; a name other than localhost counts as open."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on the address.

    Raises:
        Conflict: the port is taken.
        Misconfigured: the address is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Conflict(
                f"port {port} of {host} is taken", remedy="End what listens there, or give another SALEM_PORT"
            ) from error
        raise Misconfigured(
            f"{host}:{port} cannot be bound: {error.strerror}", remedy="Give another SALEM_HOST or SALEM_PORT"
        ) from error


def display_host(host: str) -> str:
    """The host as it goes into a URL that works on this machine."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1" if host == "0.0.0.0" else "[::1]"
    return f"[{host}]" if ":" in host else host
