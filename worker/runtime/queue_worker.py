"""RQ's worker, made to outlive its Redis: away for a minute, or back with nothing in it.

RQ signs a worker on once, at its start. A Redis that was emptied has forgotten it, and its jobs would be
thought nobody's while it works on. Knows RQ and Redis. Does not know what a job is.
"""

from __future__ import annotations

from types import FrameType

from redis import Redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from rq import Worker, worker_registration

# Pauses of about a minute together: a Redis that is started anew is back by then.
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
NUM_RETRIES = 9
CONNECT_TIMEOUT_S = 5


class QueueWorker(Worker):  # type: ignore[misc]
    """A worker whose every heartbeat says all that its birth said. Told to end, it waits for no Redis."""

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        super().heartbeat(timeout, pipeline)
        connection = self.connection if pipeline is None else pipeline
        connection.hset(self.key, mapping=self.serialize())
        worker_registration.register(self, pipeline)

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        self._wait_no_more()
        super().request_stop(signum, frame)

    def teardown(self) -> None:
        self._wait_no_more()
        super().teardown()

    def _wait_no_more(self) -> None:
        self.connection.set_retry(Retry(NoBackoff(), 0))


def retry_while_unreachable(connection: Redis) -> None:
    """Make each command wait for a Redis that is away, as long as a start of it may take.

    Without it, one heartbeat that fails ends the worker and kills the job that it runs.
    """
    # Not the socket's own timeout: the driver would try to connect as often again within each try.
    kinds = (RedisConnectionError, RedisTimeoutError)
    pauses = ExponentialBackoff(cap=LONGEST_PAUSE_S, base=FIRST_PAUSE_S)
    connection.set_retry(Retry(pauses, NUM_RETRIES, supported_errors=kinds))
