"""Brings the queue and the blobs in line with SQL: queues lost jobs again, and removes unneeded blobs.

A thread of the API process. Knows the registry, the queue, and the blob store. Must not know what a job does.
Several API processes may run it: a job that is queued twice is claimed once.
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
ORPHAN_AGE_S = 86_400.0  # much longer than any job takes between storing a blob and naming it in SQL


class Reconciler:
    """Runs every `reconcile_s` seconds until it is stopped."""

    def __init__(self, settings: Settings, registry: Registry, queue: JobQueue, blobs: BlobStore) -> None:
        self._settings = settings
        self._registry = registry
        self._queue = queue
        self._blobs = blobs
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)
        self._next_round = 0.0
        self._next_sweep = time.monotonic() + SWEEP_EVERY_S  # leaves time to notice a wrong setting

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Stop the thread, and wait for the round that it may be in."""
        self._stopping.set()
        self._thread.join(timeout_s)

    def requeue_lost(self) -> int:
        """Queue the jobs that SQL has as queued and Redis does not know. Returns how many.

        Jobs without attempts left fail on the way.
        """
        num_requeued = 0
        if time.monotonic() < self._next_round:
            return 0
        try:
            lost = self._registry.jobs.lost(self._settings.max_attempts)
        except Unavailable:
            # workers cannot renew their leases either: give them time to do so
            self._next_round = time.monotonic() + self._settings.lease_s
            raise
        for job in lost:
            if not self._queue.holds(job.id):
                self._queue.enqueue(job.id, self._settings.job_timeout_s)
                num_requeued += 1
                structlog.get_logger().info("job queued again", job_id=job.id, attempt=job.attempt)
        return num_requeued

    def sweep(self) -> int:
        """Remove old blobs that no row names, unless the store belongs to another installation."""
        in_use = self._registry.blobs_in_use()
        if not self._blobs.claim(self._registry.installation(), in_use):
            structlog.get_logger().warning("blobs not swept: the store belongs to another installation")
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
                # the thread must survive any error: without it, lost jobs would wait forever
                structlog.get_logger().exception("reconciling failed")
