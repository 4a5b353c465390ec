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
from worker.attempts.pace import Pace, PhaseSeconds
from worker.attempts.retries import timed_out


class JobReporter:
    """Reports of one attempt, as a context manager. Implements `worker.training.observer.Observer`."""

    def __init__(self, registry: Registry, job_id: str, lease: str, lease_s: float) -> None:
        self._registry, self._job_id, self._lease, self._lease_s = registry, job_id, lease, lease_s
        self._began = self._phase_began = time.monotonic()
        self._phase = ""
        self._ended: dict[str, float] = {}  # seconds of each phase that has ended
        self._pace: Pace | None = None
        self._share: float | None = None
        self._shown = 0.0  # the largest share that was reported
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

    def expect(self, phases: PhaseSeconds) -> None:
        """From now on, progress and the time left follow from how long each phase should take."""
        self._pace = Pace(phases)

    @property
    def phase_seconds(self) -> dict[str, float]:
        """How long each phase that has ended took."""
        return {name: round(seconds, 2) for name, seconds in self._ended.items()}

    def phase(self, name: str, progress: float) -> None:
        now = time.monotonic()
        if name != self._phase:
            if self._phase:
                self._ended[self._phase] = now - self._phase_began
            self._phase, self._phase_began = name, now
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
        left = self._time_left_s()
        progress = Progress(phase, self._share_passed(left), left, saliency, metrics)
        if self._lost is not None:
            raise self._lost
        try:
            self._registry.jobs.report(self._job_id, self._lease, self._lease_s, progress)
        except Unavailable as error:
            if timed_out(error):
                raise
            self._missed(error)

    def _time_left_s(self) -> float | None:
        """An estimate from the expected phases, or else at a constant speed."""
        if self._pace is not None:
            in_phase_s = time.monotonic() - self._phase_began
            return self._pace.time_left_s(self._ended, self._phase, in_phase_s)
        if not self._share:
            return None
        return (time.monotonic() - self._began) * (1 - self._share) / self._share

    def _share_passed(self, time_left_s: float | None) -> float | None:
        """The share of the job's time that has passed; it never falls.

        Without expected phases, it is the share that the job reported last.
        """
        if self._pace is not None and time_left_s is not None:
            passed_s = time.monotonic() - self._began
            self._shown = max(self._shown, passed_s / (passed_s + time_left_s))
            return self._shown
        self._shown = self._share or 0.0
        return self._share

    def _renew(self) -> None:
        while not self._stopping.wait(self._lease_s / 3):
            try:
                left = self._time_left_s()
                progress = Progress(share=self._share_passed(left) if self._pace else None, time_left_s=left)
                self._registry.jobs.report(self._job_id, self._lease, self._lease_s, progress)
            except LeaseLost as lost:
                self._lost = lost
                return
            except SalemError as error:
                self._missed(error)

    def _missed(self, error: SalemError) -> None:
        """Log a missed report. If the lease is lost meanwhile, a later report raises `LeaseLost`."""
        structlog.get_logger().warning("lease not renewed", job_id=self._job_id, reason=error.reason)
