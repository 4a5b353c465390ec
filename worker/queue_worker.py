"""RQ's worker, made to outlive its Redis: away for a minute, or back with nothing in it.

RQ signs a worker on once, at its start. A Redis that was emptied has forgotten it, and its jobs would be
thought nobody's while it works on. Knows RQ and Redis. Does not know what a job is.
"""

from __future__ import annotations

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.client import Pipeline
from redis.retry import Retry
from rq import Worker, worker_registration

LONGEST_PAUSE_S = 2.0
NUM_RETRIES = 40  # with these pauses over a minute: a Redis that is started anew is back by then


class QueueWorker(Worker):
    """A worker whose every heartbeat says all that its birth said."""

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        super().heartbeat(timeout, pipeline)
        connection = self.connection if pipeline is None else pipeline
        connection.hset(self.key, mapping=self.serialize())
        worker_registration.register(self, pipeline)


def endure(connection: Redis) -> None:
    """Make each command wait for a Redis that is away, as long as a start of it may take.

    Without it, one heartbeat that fails ends the worker and kills the job that it runs.
    """
    connection.set_retry(Retry(ExponentialBackoff(cap=LONGEST_PAUSE_S, base=0.1), NUM_RETRIES))
