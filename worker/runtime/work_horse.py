"""Runs one job: the entry point that the queue names.

At least one attempt runs, and at most one takes effect. An attempt holds a lease token. One transaction
checks the token, stores the result, and ends the job. A delta's blob is written before; nobody can see it
until its row exists, and it is swept if the row never appears. An attempt that cannot reach the database or
the blob store is given back: its lease expires, and the job is queued again while it has attempts left. An
error that only a person can fix fails the job at once.

Must not know what any kind of job does.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog
import torch
from rq.timeouts import JobTimeoutException

from salem.errors import LeaseLost, OutOfMemory, SalemError, TimedOut, Unavailable
from salem.records import Job, JobKind
from salem.settings import Settings
from salem.storage.blobs import BlobStore
from salem.storage.registry import Registry
from worker.attempts.attempt import Attempt
from worker.attempts.reporting import JobReporter
from worker.attempts.retries import timed_out
from worker.jobs import edit as edit_job
from worker.jobs import editor as editor_job
from worker.jobs import registration as register_job
from worker.jobs import removal as remove_job
from worker.training.micro_batches import ran_out_of_memory

_INTERNAL = SalemError(
    "The job failed because of an unexpected error.",
    remedy="The worker's log has the traceback under this job's id.",
)
_OUT_OF_MEMORY = OutOfMemory(
    "The job ran out of memory.",
    remedy="Use a larger host, shorter samples, or fewer pass samples (options.max_pass_samples).",
)
_AGAIN = "then send the request again, with a new Idempotency-Key if it had one"
_TIMED_OUT = TimedOut(
    "The job exceeded the time limit for jobs.",
    remedy="Send fewer edits per job, or lower options.max_steps or options.max_pass_samples.",
)


def run_job(job_id: str) -> None:
    """Claim a job and run it to its end; return silently if there is nothing to do for this attempt."""
    settings = Settings()
    torch.set_flush_denormal(True)
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    registry = Registry.connect(settings.effective_database_url)
    try:
        claimed = registry.jobs.claim(job_id, settings.lease_s)
        if claimed is None:
            # The job was cancelled, another attempt has it, or the queue belongs to another database.
            structlog.get_logger().info("nothing to do", job_id=job_id)
            return
        JobRun(settings, registry, *claimed).run()
    finally:
        registry.close()


class JobRun:
    """One attempt of one job."""

    def __init__(self, settings: Settings, registry: Registry, job: Job, lease: str) -> None:
        blobs = BlobStore.connect(settings.effective_blob_url)
        self.attempt = Attempt(settings, registry, blobs, job, lease)
        self.log = structlog.get_logger().bind(job_id=job.id, kind=job.kind.value, model=job.model)

    def run(self) -> None:
        """Do the work and end the job as succeeded or as failed with a safe reason, or give it back."""
        attempt = self.attempt
        began = time.monotonic()
        self.log.info("job started", attempt=attempt.job.attempt)
        try:
            with JobReporter(
                attempt.registry, attempt.job.id, attempt.lease, attempt.settings.lease_s
            ) as reporter:
                self.work(reporter)
            self.log.info("job succeeded", seconds=round(time.monotonic() - began, 2))
        except LeaseLost:
            self.log.info("attempt given up: the job was cancelled or taken over")
        except (SalemError, JobTimeoutException) as error:
            if timed_out(error):
                self.log.warning("job timed out", seconds=round(time.monotonic() - began, 2))
                self._fail(_TIMED_OUT)
            elif isinstance(error, Unavailable):
                self._give_back(error)
            else:
                self.log.warning("job failed", code=error.code, reason=error.reason)
                self._fail(error)
        except Exception as error:
            # Last-resort handler: the job must not stay running forever.
            no_memory = ran_out_of_memory(error)
            self.log.exception("job ran out of memory" if no_memory else "job failed unexpectedly")
            self._fail(_OUT_OF_MEMORY if no_memory else _INTERNAL)

    def work(self, reporter: JobReporter) -> None:
        """Run the module for the job's kind."""
        _WORK[self.attempt.job.kind](self.attempt, reporter)

    def _give_back(self, error: Unavailable) -> None:
        """Leave the job to its next attempt, which starts when the lease expires; fail the last attempt."""
        attempt, most = self.attempt.job.attempt, self.attempt.settings.max_attempts
        if attempt < most:
            self.log.warning("attempt given back", attempt=attempt, reason=error.reason)
            return
        self.log.warning("job failed", code=error.code, reason=error.reason)
        message = f"{error.message}, in the last of {attempt} attempts"
        self._fail(Unavailable(message, remedy=f"{error.remedy}; {_AGAIN}" if error.remedy else _AGAIN))

    def _fail(self, error: SalemError) -> None:
        try:
            self.attempt.registry.jobs.fail(self.attempt.job.id, self.attempt.lease, error.as_job_error())
        except LeaseLost:
            self.log.info("failure not recorded: the job was cancelled or taken over")
        except SalemError as unreachable:
            self.log.warning("failure not recorded: the lease will expire", reason=unreachable.reason)


_WORK: dict[JobKind, Callable[[Attempt, JobReporter], None]] = {
    JobKind.REGISTER: register_job.run,
    JobKind.EDIT: edit_job.run,
    JobKind.REMOVE: remove_job.run,
    JobKind.TRAIN_EDITOR: editor_job.run,
}
