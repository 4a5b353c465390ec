"""The real worker for tests of the queue, with a job that waits for a file instead of editing a model.

Run as a program: queue_jobs.py REDIS_URL QUEUE FOLDER [SECONDS BETWEEN TWO LOOKS AT A RUNNING JOB].
"""

from __future__ import annotations

import sys
import time
import types
from pathlib import Path

from redis import Redis
from rq import Queue
from rq.serializers import JSONSerializer

from worker.runtime.queue_worker import QueueWorker, retry_while_unreachable


def install(folder: Path) -> None:
    """Replace the real entry point, `worker.runtime.work_horse.run_job`."""

    def run_job(job_id: str) -> None:
        (folder / f"{job_id}.began").touch()
        while not (folder / f"{job_id}.end").exists():
            time.sleep(0.02)

    jobs = types.ModuleType("worker.runtime.work_horse")
    jobs.__dict__["run_job"] = run_job
    sys.modules["worker.runtime.work_horse"] = jobs


if __name__ == "__main__":
    install(Path(sys.argv[3]))
    redis = Redis.from_url(sys.argv[1])
    retry_while_unreachable(redis)
    queue = Queue(sys.argv[2], connection=redis, serializer=JSONSerializer)
    interval_s = int(sys.argv[4]) if len(sys.argv) > 4 else 30
    worker = QueueWorker(
        [queue], connection=redis, serializer=JSONSerializer, job_monitoring_interval=interval_s
    )
    worker.work(logging_level="WARNING")
