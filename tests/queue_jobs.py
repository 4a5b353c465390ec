"""A worker for the queue's tests: RQ's own, with a job that waits for a file instead of editing a model.

Run as a program: queue_jobs.py REDIS_URL QUEUE FOLDER.
"""

from __future__ import annotations

import sys
import time
import types
from pathlib import Path

from redis import Redis
from rq import Queue, Worker
from rq.serializers import JSONSerializer


def install(folder: Path) -> None:
    """Stand where the real entry point stands: `worker.jobs.run_job`."""

    def run_job(job_id: str) -> None:
        (folder / f"{job_id}.began").touch()
        while not (folder / f"{job_id}.end").exists():
            time.sleep(0.02)

    jobs = types.ModuleType("worker.jobs")
    jobs.__dict__["run_job"] = run_job
    sys.modules["worker"] = types.ModuleType("worker")
    sys.modules["worker.jobs"] = jobs


if __name__ == "__main__":
    install(Path(sys.argv[3]))
    redis = Redis.from_url(sys.argv[1])
    queue = Queue(sys.argv[2], connection=redis, serializer=JSONSerializer)
    Worker([queue], connection=redis, serializer=JSONSerializer).work(logging_level="WARNING")
