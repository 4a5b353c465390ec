"""RQ's worker, extended to survive a Redis that is unreachable for a minute or restarts empty.

RQ registers a worker only once, at its start. After a Redis restart without data, RQ would take the running
job of an unregistered worker for abandoned. Must not know what a job is.
"""

from __future__ import annotations

import signal
from types import FrameType

from redis import Redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from rq import Queue, Worker, worker_registration
from rq.job import Job

from salem import parent_death

# About a minute in total, which is enough for a restart of Redis.
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
NUM_RETRIES = 9
CONNECT_TIMEOUT_S = 5


class QueueWorker(Worker):  # type: ignore[misc]
    """A worker that registers again with each heartbeat and does not wait for Redis when it stops."""

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        super().heartbeat(timeout, pipeline)
        connection = self.connection if pipeline is None else pipeline
        connection.hset(self.key, mapping=self.serialize())
        worker_registration.register(self, pipeline)

    def main_work_horse(self, job: Job, queue: Queue) -> None:
        """Run one job in the forked work-horse, which ends when the worker does."""
        # `pid` was read before the fork: if the worker died since, the work-horse ends now.
        assert self.pid is not None, "a worker that was started here knows its process"
        parent_death.die_with_parent(self.pid, signal.SIGKILL)
        super().main_work_horse(job, queue)

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
