"""The worker process: an RQ worker that forks a work-horse per job.

The parent imports all heavy libraries once and runs no tensor operations, so a fork is cheap and safe. The
work-horse loads the model, does the job, and exits, so memory, CUDA, and time faults stay inside one job.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time

import structlog
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from rq import Queue
from rq.serializers import JSONSerializer
from tenacity import Retrying, before_sleep_log, retry_if_exception_type, stop_after_delay, wait_exponential

from salem import __version__
from salem.errors import SalemError
from salem.logs import configure_logging
from salem.settings import Settings
from salem.storage.blobs import BlobStore
from salem.storage.registry import Registry
from worker.runtime import work_horse
from worker.runtime.queue_worker import CONNECT_TIMEOUT_S, QueueWorker, retry_while_unreachable

MAINTENANCE_S = 30  # between RQ's cleanups of jobs whose worker died; RQ's default is ten minutes
WORKER_TTL_S = 30  # an idle worker sends a heartbeat every 15 s; RQ adds a minute before it expires
CONNECT_WITHIN_S = 60
RESULT_TTL_S = 30
MAX_CLOCK_OFFSET_S = 5.0
SET_CLOCKS = "synchronize the clocks of all hosts: leases depend on them"


def main(arguments: list[str] | None = None) -> int:
    """Work until told to stop; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m worker.main", description="Runs Salem's jobs.")
    parser.add_argument("--burst", action="store_true", help="end when the queue is empty")
    options = parser.parse_args(arguments)
    settings = Settings()
    configure_logging(settings)
    log = structlog.get_logger()
    entry_point = work_horse.run_job.__qualname__
    log.info("worker starts", version=__version__, queue=settings.queue, entry_point=entry_point)
    try:
        check_stores(settings)
    except SalemError as error:
        log.error("worker ends", code=error.code, reason=error.reason, remedy=error.remedy)
        return 1
    connection = connect(settings.effective_redis_url)
    retry_while_unreachable(connection)
    offset_s = clock_offset_s(connection)
    if abs(offset_s) > MAX_CLOCK_OFFSET_S:
        log.warning(
            "this host's clock differs from that of Redis", seconds=round(offset_s, 1), remedy=SET_CLOCKS
        )
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


# Services of a deployment may start in any order.
_retry_at_start = Retrying(
    retry=retry_if_exception_type((RedisConnectionError, SalemError)),
    wait=wait_exponential(multiplier=0.2, max=5),
    stop=stop_after_delay(CONNECT_WITHIN_S),
    before_sleep=before_sleep_log(logging.getLogger("salem.worker"), logging.WARNING),
    reraise=True,
)


@_retry_at_start.wraps
def check_stores(settings: Settings) -> None:
    """Refuse to start if results could not be recorded: jobs would be queued again forever.

    Raises:
        Misconfigured: the database has another version's tables, or the blob store's URL is invalid.
        Unavailable: the database does not answer.
    """
    registry = Registry.connect(settings.effective_database_url)
    try:
        registry.check_tables()
    finally:
        registry.close()
    BlobStore.connect(settings.effective_blob_url)


@_retry_at_start.wraps
def connect(url: str) -> Redis:
    """A connection to a Redis that answers."""
    connection = Redis.from_url(url, socket_connect_timeout=CONNECT_TIMEOUT_S)
    connection.ping()
    return connection


def clock_offset_s(connection: Redis) -> float:
    """Seconds by which this host's clock is ahead of that of Redis."""
    seconds, microseconds = connection.time()
    return time.time() - seconds - microseconds / 1e6


if __name__ == "__main__":
    sys.exit(main())
