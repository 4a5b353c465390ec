"""The container's health check: exit status 0 while a worker of this host is registered in Redis.

RQ's entry for a dead worker expires by itself. Must not know jobs, SQL, or models, and never loads torch,
because it runs every few seconds.
"""

from __future__ import annotations

import argparse
import socket
import sys

from redis import Redis
from redis.exceptions import RedisError
from rq import Worker

from salem.settings import Settings

_TIMEOUT_S = 5.0


def registered_on(hostname: str, connection: Redis) -> bool:
    """Whether a worker on this host is registered and its entry has not expired."""
    return any(worker.hostname == hostname for worker in Worker.all(connection=connection))


def main() -> int:
    argparse.ArgumentParser(
        prog="python -m worker.runtime.health", description=__doc__.partition("\n")[0]
    ).parse_args()
    url = Settings().effective_redis_url
    try:
        with Redis.from_url(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S) as connection:
            if registered_on(socket.gethostname(), connection):
                return 0
    except RedisError as error:
        print(f"Redis does not answer: {type(error).__name__}", file=sys.stderr)
        return 1
    print("no worker of this host is registered", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
