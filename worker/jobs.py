"""Runs one job: the entry point that the queue names. Glue between storage and the method.

At least one attempt runs; at most one takes effect. An attempt holds a lease token, and whatever it wants
to keep is written in the one transaction that also ends the job and checks the token. A delta's blob is
written just before: nobody can see it until its row is there, and it is swept if the row never comes.
"""

from __future__ import annotations

import os
import signal
import time
from datetime import UTC, datetime
from typing import Any

import structlog
import torch
from rq.timeouts import JobTimeoutException

from salem import lifeline
from salem.blobs import BlobStore
from salem.deltas import LayerDelta, pack, unpack
from salem.errors import LeaseLost, ModelNotReady, SalemError
from salem.hosting import Network, load, locate, weights_sha256
from salem.records import (
    Delta,
    EditRequest,
    HostedModel,
    Job,
    JobError,
    JobKind,
    ModelReference,
    ModelState,
    Proportion,
    RegisterRequest,
    Sample,
    Version,
)
from salem.registry import Registry
from salem.settings import Settings
from worker.edit_dataset import build_edit_batch
from worker.editing import MeasuredDelta, make_edit
from worker.registration import answer_reference
from worker.reporting import JobReporter

_INTERNAL = JobError(
    code="internal",
    message="The job failed for a reason that is not the request's.",
    remedy="The worker's log holds the trace under this job's id.",
)
_OUT_OF_MEMORY = JobError(
    code="out_of_memory",
    message="The job needed more memory than there is.",
    remedy="Use a larger host, shorter samples or fewer pass samples (options.max_pass_samples).",
)
_TIMED_OUT = JobError(
    code="timed_out",
    message="The job took longer than a job may take.",
    remedy="Send fewer edits per job, lower options.max_steps or options.max_pass_samples.",
)


def run_job(job_id: str) -> None:
    """Claim a job and run it to its end; returns quietly when there is nothing to do for this attempt."""
    lifeline.die_with_parent(os.getppid(), signal.SIGKILL)
    settings = Settings()
    torch.set_flush_denormal(True)
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    registry = Registry.connect(settings.effective_database_url)
    try:
        claimed = registry.claim_job(job_id, settings.lease_s)
        if claimed is not None:
            JobRun(settings, registry, *claimed).run()
    finally:
        registry.close()


class JobRun:
    """One attempt of one job."""

    def __init__(self, settings: Settings, registry: Registry, job: Job, lease: str) -> None:
        self.settings, self.registry, self.job, self.lease = settings, registry, job, lease
        self.blobs = BlobStore.connect(settings.effective_blob_url)
        self.log = structlog.get_logger().bind(job_id=job.id, kind=job.kind.value, model=job.model)

    def run(self) -> None:
        """Do the work and end the job, as succeeded or as failed with a safe reason."""
        work = {JobKind.REGISTER: self._register, JobKind.EDIT: self._edit}[self.job.kind]
        began = time.monotonic()
        self.log.info("job started", attempt=self.job.attempt)
        try:
            with JobReporter(self.registry, self.job.id, self.lease, self.settings.lease_s) as reporter:
                work(reporter)
            self.log.info("job succeeded", seconds=round(time.monotonic() - began, 2))
        except LeaseLost:
            self.log.info("attempt given up: the job was cancelled or taken over")
        except SalemError as error:
            self.log.warning("job failed", code=error.code, reason=error.message)
            self._fail(error.as_job_error())
        except (MemoryError, torch.OutOfMemoryError):
            self.log.exception("job ran out of memory")
            self._fail(_OUT_OF_MEMORY)
        except JobTimeoutException:
            self.log.warning("job timed out", seconds=round(time.monotonic() - began, 2))
            self._fail(_TIMED_OUT)
        except Exception:
            # The end of every road: whatever went wrong, the job must not stay running for ever.
            self.log.exception("job failed unexpectedly")
            self._fail(_INTERNAL)

    def _fail(self, error: JobError) -> None:
        try:
            self.registry.fail_job(self.job.id, self.lease, error)
        except LeaseLost:
            self.log.info("failure not recorded: the job was cancelled or taken over")

    def _register(self, reporter: JobReporter) -> None:
        request = RegisterRequest.model_validate(self.job.request)
        model = self.registry.get_model(request.model)
        reporter.phase("loading", 0.05)
        folder = locate(model.source, self.settings.effective_models_root)
        network = load(folder, model.task, device=self.settings.device)
        sha256 = weights_sha256(folder)
        lines = self.blobs.get(request.reference).splitlines()
        samples = [Sample.model_validate_json(line) for line in lines]
        reporter.phase("evaluating", 0.2)
        answered = answer_reference(
            network, samples, lambda share: reporter.phase("evaluating", 0.2 + 0.75 * share)
        )
        ready = model.model_copy(
            update={
                "state": ModelState.READY,
                "sha256": sha256,
                "architecture": type(network.model).__name__,
                "num_parameters": network.model.num_parameters(),
                "labels": network.labels,
                "max_input_tokens": network.max_input_tokens,
                "layers": network.layers,
                "reference_accuracy": answered.accuracy,
                "num_pass_samples": answered.num_pass_samples,
                "num_held_out": answered.num_held_out,
            }
        )
        reporter.phase("writing", 0.97)
        result = {
            "model": model.name,
            "sha256": sha256,
            "reference_accuracy": answered.accuracy and answered.accuracy.model_dump(),
            "num_pass_samples": answered.num_pass_samples,
            "num_held_out": answered.num_held_out,
        }
        self.registry.finish_registration(self.job.id, self.lease, ready, answered.reference, result)

    def _edit(self, reporter: JobReporter) -> None:
        began = time.monotonic()
        request = EditRequest.model_validate(self.job.request)
        model = self.registry.get_model(request.model)
        parent = self.registry.resolve(ModelReference(model=model.name, number=request.parent))
        reporter.phase("loading", 0.02)
        network = self._load(model)
        deltas = [
            unpack(self.blobs.get(delta.blob), base_sha256=str(model.sha256), layers=model.layers).to(
                network.device, network.model.dtype
            )
            for delta in parent.deltas
        ]
        batch = build_edit_batch(
            request.edits,
            []
            if request.pass_samples is not None
            else self.registry.reference_samples(model.name, correct=True),
            request.pass_samples,
            max_pass_samples=request.hyperparameters.max_pass_samples,
            max_held_out=request.hyperparameters.max_held_out,
            seed=request.hyperparameters.seed,
        )
        made = make_edit(network, deltas, batch, request.hyperparameters, reporter)
        reporter.phase("writing", 0.97)
        self._publish(request, model, parent, made, seconds=time.monotonic() - began)

    def _load(self, model: HostedModel) -> Network:
        folder = locate(model.source, self.settings.effective_models_root)
        if weights_sha256(folder) != model.sha256:
            raise ModelNotReady(
                f'The weights of "{model.name}" are no longer those that were registered.',
                remedy="Put the registered files back, or register the new ones under another name.",
            )
        return load(folder, model.task, device=self.settings.device)

    def _publish(
        self, request: EditRequest, model: HostedModel, parent: Version, made: MeasuredDelta, seconds: float
    ) -> None:
        """Write the delta, then the version and the job's end in one transaction."""
        data = pack_made(made, model, parent, request)
        term = made.delta.terms[0]
        delta = Delta(
            layer=made.layer.path,
            blob=self.blobs.put(data),
            num_bytes=len(data),
            kind=term.kind,
            rank=term.rank,
        )
        version = Version(
            model=model.name,
            number=0,
            parent=parent.number,
            deltas=(*parent.deltas, delta),
            metrics=made.metrics,
            hyperparameters=request.hyperparameters,
            layer=made.layer.path,
            job_id=self.job.id,
            created_at=datetime.now(UTC),
        )
        result = summary(made, delta) | {"worker_seconds": round(seconds, 2)}
        self.registry.finish_edit(self.job.id, self.lease, version, request.alias, result)


def pack_made(made: MeasuredDelta, model: HostedModel, parent: Version, request: EditRequest) -> bytes:
    """The delta's file, its header saying what it is, what it belongs to and how it was made."""
    term = made.delta.terms[0]
    return pack(
        LayerDelta(made.delta.layer, made.delta.terms),
        base_sha256=str(model.sha256),
        parent=parent.reference,
        method=request.hyperparameters.recipe.value,
        rank=term.rank,
        seed=request.hyperparameters.seed,
        metrics=figures(made),
    )


def figures(made: MeasuredDelta) -> dict[str, float | None]:
    """The headline figures of a version."""
    metrics = made.metrics
    return {
        "edit_accuracy": metrics.edit_accuracy.value,
        "adapt_accuracy": _value(metrics.adapt_accuracy),
        "generalisation": _value(metrics.generalisation),
        "drawdown": _value(metrics.drawdown),
        "consistency": _value(metrics.consistency),
    }


def summary(made: MeasuredDelta, delta: Delta) -> dict[str, Any]:
    """What a job returns beside the version's name: figures with intervals, and what was made."""
    metrics = made.metrics
    intervals = {
        name: proportion and proportion.model_dump()
        for name, proportion in (
            ("edit_accuracy", metrics.edit_accuracy),
            ("adapt_accuracy", metrics.adapt_accuracy),
            ("generalisation", metrics.generalisation),
            ("drawdown", metrics.drawdown),
            ("consistency", metrics.consistency),
        )
    }
    return {
        **figures(made),
        "intervals": intervals,
        "held_out": metrics.drawdown.count if metrics.drawdown else 0,
        "failing_before": made.num_failing,
        "layer": made.layer.path,
        "kind": delta.kind,
        "rank": delta.rank,
        "delta_bytes": delta.num_bytes,
        "delta_sha256": delta.blob,
        "notes": list(metrics.notes),
    }


def _value(proportion: Proportion | None) -> float | None:
    return None if proportion is None else proportion.value
