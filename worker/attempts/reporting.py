"""Keeps the row of a running job up to date: lease, phase, progress, time left.

During long calls, a thread renews the lease and the estimate of the time left. If the lease is lost, the next
report raises `LeaseLost` in the job's thread. If the database cannot be reached, the job goes on. Must not
know what the job does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType

import structlog

from salem.errors import LeaseLost, SalemError, Unavailable
from salem.records import LayerScore
from salem.storage.registry import Registry
from salem.storage.rows.leases import Progress
from worker.attempts.retries import timed_out


class JobReporter:
    """Reports of one attempt, as a context manager. Implements `worker.training.observer.Observer`."""

    def __init__(self, registry: Registry, job_id: str, lease: str, lease_s: float) -> None:
        self._registry, self._job_id, self._lease, self._lease_s = registry, job_id, lease, lease_s
        self._began = time.monotonic()
        self._share: float | None = None
        self._lost: LeaseLost | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> JobReporter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join(self._lease_s)

    def phase(self, name: str, progress: float) -> None:
        self._report(phase=name, share=progress)

    def saliency(self, scores: Sequence[LayerScore]) -> None:
        self._report(saliency=scores)

    def figures(self, progress: float, figures: dict[str, float]) -> None:
        self._report(share=progress, metrics=figures)

    def _report(
        self,
        *,
        phase: str | None = None,
        share: float | None = None,
        saliency: Sequence[LayerScore] | None = None,
        metrics: dict[str, float] | None = None,
    ) -> None:
        self._share = share or self._share
        progress = Progress(phase, share, self._time_left_s(), saliency, metrics)
        if self._lost is not None:
            raise self._lost
        try:
            self._registry.jobs.report(self._job_id, self._lease, self._lease_s, progress)
        except Unavailable as error:
            if timed_out(error):
                raise
            self._missed(error)

    def _time_left_s(self) -> float | None:
        """An estimate that assumes a constant speed. Without new reports, it grows."""
        if not self._share:
            return None
        return (time.monotonic() - self._began) * (1 - self._share) / self._share

    def _renew(self) -> None:
        while not self._stopping.wait(self._lease_s / 3):
            try:
                progress = Progress(time_left_s=self._time_left_s())
                self._registry.jobs.report(self._job_id, self._lease, self._lease_s, progress)
            except LeaseLost as lost:
                self._lost = lost
                return
            except SalemError as error:
                self._missed(error)

    def _missed(self, error: SalemError) -> None:
        """Log a missed report. If the lease is lost meanwhile, a later report raises `LeaseLost`."""
        structlog.get_logger().warning("lease not renewed", job_id=self._job_id, reason=error.reason)
