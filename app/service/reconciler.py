"""Brings the queue back in line with SQL: what Redis has lost is queued again, what nobody needs is swept.

A thread of the API process. Knows the registry, the queue and the blob store; does not know what a job does.
Running it in several API processes is harmless: a job that is queued twice is claimed once.
"""

from __future__ import annotations

import threading
import time

import structlog

from salem.errors import SalemError, Unavailable
from salem.queue.job_queue import JobQueue
from salem.settings import Settings
from salem.storage.blobs import BlobStore
from salem.storage.registry import Registry

SWEEP_EVERY_S = 900.0
ORPHAN_AGE_S = 86_400.0  # far longer than any upload or job waits between writing a blob and naming it in SQL


class Reconciler:
    """Looks every `reconcile_s` until it is stopped."""

    def __init__(self, settings: Settings, registry: Registry, queue: JobQueue, blobs: BlobStore) -> None:
        self._settings = settings
        self._registry = registry
        self._queue = queue
        self._blobs = blobs
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)
        self._next_look = 0.0
        self._next_sweep = time.monotonic() + SWEEP_EVERY_S  # time to notice a wrong setting

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ask it to end, and wait for the look that it may be in."""
        self._stopping.set()
        self._thread.join(timeout_s)

    def requeue_lost(self) -> int:
        """Queue the jobs that SQL holds as waiting and Redis does not know; returns how many.

        Jobs that have used up their attempts are failed by the registry on the way.
        """
        num_requeued = 0
        if time.monotonic() < self._next_look:
            return 0
        try:
            lost = self._registry.lost_jobs(self._settings.max_attempts)
        except Unavailable:
            # Nor could workers renew their leases: they are given as long again.
            self._next_look = time.monotonic() + self._settings.lease_s
            raise
        for job in lost:
            if not self._queue.holds(job.id):
                self._queue.enqueue(job.id, self._settings.job_timeout_s)
                num_requeued += 1
                structlog.get_logger().info("job queued again", job_id=job.id, attempt=job.attempt)
        return num_requeued

    def sweep(self) -> int:
        """Delete old blobs that no row names; returns how many. A store of another's is left alone."""
        in_use = self._registry.blobs_in_use()
        if not self._blobs.claim(self._registry.installation(), in_use):
            structlog.get_logger().warning("blobs are not swept: the store is another installation's")
            return 0
        return self._blobs.sweep(in_use, ORPHAN_AGE_S)

    def _run(self) -> None:
        while not self._stopping.wait(self._settings.reconcile_s):
            try:
                self.requeue_lost()
                if time.monotonic() >= self._next_sweep:
                    self._next_sweep = time.monotonic() + SWEEP_EVERY_S
                    self.sweep()
            except SalemError as error:
                structlog.get_logger().warning("reconciling failed", code=error.code, reason=error.reason)
            except Exception:
                # the thread outlives any one bad look: without it lost jobs would wait for ever
                structlog.get_logger().exception("reconciling failed")
