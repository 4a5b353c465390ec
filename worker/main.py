"""The worker process: an RQ worker that forks a work-horse per job.

The parent imports everything heavy once and runs no tensor operation, so that a fork is cheap and safe; the
work-horse loads the model, does the job and exits. What goes wrong with memory, CUDA or time stays in there.
"""

from __future__ import annotations

import argparse
import logging
import sys

import structlog
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from rq import Queue
from rq.serializers import JSONSerializer
from tenacity import before_sleep_log, retry, retry_if_exception_type, stop_after_delay, wait_exponential

from salem.logs import configure_logging
from salem.settings import Settings
from worker import jobs
from worker.queue_worker import QueueWorker, endure

MAINTENANCE_S = 30  # RQ's own clean-up of entries whose worker died; its default is ten minutes
WORKER_TTL_S = 60  # a worker that is silent so long is taken for dead
CONNECT_WITHIN_S = 60
RESULT_TTL_S = 30


def main(arguments: list[str] | None = None) -> int:
    """Work until told to stop; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m worker.main", description="Runs Salem's jobs.")
    parser.add_argument("--burst", action="store_true", help="end when the queue is empty")
    options = parser.parse_args(arguments)
    settings = Settings()
    configure_logging(settings)
    structlog.get_logger().info("worker starts", queue=settings.queue, entry_point=jobs.run_job.__qualname__)
    connection = connect(settings.effective_redis_url)
    endure(connection)
    queue = Queue(settings.queue, connection=connection, serializer=JSONSerializer)
    worker = QueueWorker(
        [queue],
        connection=connection,
        serializer=JSONSerializer,
        maintenance_interval=MAINTENANCE_S,
        worker_ttl=WORKER_TTL_S,
        default_result_ttl=RESULT_TTL_S,
    )
    worker.work(burst=options.burst, logging_level="WARNING")
    return 0


@retry(
    retry=retry_if_exception_type(RedisConnectionError),
    wait=wait_exponential(multiplier=0.2, max=5),
    stop=stop_after_delay(CONNECT_WITHIN_S),
    before_sleep=before_sleep_log(logging.getLogger("salem.worker"), logging.WARNING),
    reraise=True,
)
def connect(url: str) -> Redis:
    """A connection that answers: services of a deployment may start in any order."""
    connection = Redis.from_url(url)
    connection.ping()
    return connection


if __name__ == "__main__":
    sys.exit(main())
