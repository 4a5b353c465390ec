"""RQ's worker, extended to survive a Redis that is unreachable for a minute or restarts empty.

RQ registers a worker only once, at its start. After a Redis restart without data, RQ would take the running
job of an unregistered worker for abandoned. Must not know what a job is.
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

# About a minute in total, which is enough for a restart of Redis.
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
NUM_RETRIES = 9
CONNECT_TIMEOUT_S = 5


class QueueWorker(Worker):  # type: ignore[misc]
    """A worker that registers again with each heartbeat, and that stops without waiting for Redis."""

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        super().heartbeat(timeout, pipeline)
        connection = self.connection if pipeline is None else pipeline
        connection.hset(self.key, mapping=self.serialize())
        worker_registration.register(self, pipeline)

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        self._stop_retrying()
        super().request_stop(signum, frame)

    def teardown(self) -> None:
        self._stop_retrying()
        super().teardown()

    def _stop_retrying(self) -> None:
        self.connection.set_retry(Retry(NoBackoff(), 0))


def retry_while_unreachable(connection: Redis) -> None:
    """Make every command retry for about a minute while Redis is unreachable.

    Without it, one failed heartbeat ends the worker and kills its job.
    """
    # Not the socket's own retries, which the driver would run within each of these.
    kinds = (RedisConnectionError, RedisTimeoutError)
    pauses = ExponentialBackoff(cap=LONGEST_PAUSE_S, base=FIRST_PAUSE_S)
    connection.set_retry(Retry(pauses, NUM_RETRIES, supported_errors=kinds))
