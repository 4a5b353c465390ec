"""Step 9: stores the delta's files, then publishes the version and ends the job in one transaction."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime

from salem.deltas.files import pack
from salem.records import Delta, EditorUse, EditResult, HeadlineMetrics, Metrics, Proportion, Version
from salem.scope.metric_files import pack_metric
from salem.scope.state_scope import StateScope
from salem.scope.text_scope import TextScope
from salem.storage.publication import AliasMove, Publication
from worker.pipeline.context import EditJob


def publish(job: EditJob, phase_seconds: Mapping[str, float]) -> None:
    """Store the delta, publish the version with its entries, and end the job.

    Args:
        phase_seconds: what each phase of the job took until now.
    """
    job.observer.phase("writing", 0.97)
    delta = store_delta(job)
    metrics = job.metrics.overall.model_copy(update={"notes": (*job.request.notes, *job.metrics.notes)})
    version = Version(
        model=job.model.name,
        number=0,
        parent=job.version.number,
        deltas=(*job.below, delta),
        metrics=metrics,
        options=job.request.options,
        layer=job.layer.path,
        job_id=job.attempt.job.id,
        created_at=datetime.now(UTC),
    )
    request = job.request
    made = Publication(
        entries={len(job.below): list(enumerate(job.trained.entries))},
        outcomes=job.metrics.outcomes,
        flips=job.metrics.flips,
        broken_neighbors=job.metrics.broken_neighbors,
        metric=delta.metric if job.trained.metric_is_new else None,
        given_metric=job.given_metric,
        alias=AliasMove(request.alias, request.alias_was) if request.alias else None,
    )
    # publication adds the version: its number is not known before
    result = _result(job, delta, metrics, phase_seconds).model_dump(mode="json", exclude={"version"})
    job.attempt.end(job.attempt.registry.finish_edit, version, result, made)


def store_delta(job: EditJob) -> Delta:
    """Store the files of the delta and its metric, and read them back. No version names them yet.

    The header names the base, the delta below, the metric that the job started from, the recipe, and the
    seed. It contains no number that storage assigns, so the same chain of requests gives the same files.
    """
    term, scoped, editor = job.trained.term, job.delta.scoped, job.artifacts.editor
    data = pack(
        job.delta,
        base_sha256=str(job.model.sha256),
        parent=job.below[-1].blob if job.below else None,
        given_metric=job.given_metric if scoped else None,
        method=job.recipe.name,
        rank=term.rank,
        seed=job.recipe.options.seed,
        metrics=_values(job.metrics),
        **({"editor": editor.sha256} if editor else {}),
    )
    scope = scoped and scoped.scope
    if isinstance(scope, StateScope) and job.trained.metric_is_new:
        job.attempt.keep(pack_metric(scope.metric))
    delta = Delta(
        layer=job.layer.path,
        blob=job.attempt.keep(data),
        num_bytes=len(data),
        kind=term.kind,
        rank=term.rank,
        metric=scope.reader if isinstance(scope, StateScope) else None,
        encoder=scope.reader if isinstance(scope, TextScope) else None,
    )
    job.attempt.stored(delta, job.model)  # as a server reads it: nothing is published that cannot be served
    return delta


def _result(job: EditJob, delta: Delta, metrics: Metrics, phase_seconds: Mapping[str, float]) -> EditResult:
    return EditResult(
        **dict(headline(metrics)),
        version="",
        failing_before=job.num_failing,
        layer=job.layer.path,
        layer_reason=job.reason,
        editor=_editor(job),
        kind=delta.kind,
        rank=delta.rank,
        delta_bytes=delta.num_bytes,
        delta_sha256=delta.blob,
        estimated_peak_bytes=job.estimate.num_bytes,
        worker_seconds=round(time.monotonic() - job.began, 2),
        phase_seconds=dict(phase_seconds),
    )


def _editor(job: EditJob) -> EditorUse | None:
    """The editor that made the delta; None for recipes without one."""
    if job.recipe.editor is not None:
        return EditorUse(id=job.recipe.editor, trained="ahead of time")
    return EditorUse(id=None, trained="for this job") if job.recipe.trains_editor else None


def headline(metrics: Metrics) -> HeadlineMetrics:
    """The metrics that the result of a job shows, with their intervals and notes."""
    return HeadlineMetrics(
        **_proportions(metrics),
        forgetting=metrics.forgetting,
        held_out=metrics.drawdown.count if metrics.drawdown else 0,
        notes=metrics.notes,
    )


def _values(metrics: Metrics) -> dict[str, float | None]:
    """The same metrics without intervals, for the header of a delta's file."""
    return {name: share.value if share else None for name, share in _proportions(metrics).items()}


def _proportions(metrics: Metrics) -> dict[str, Proportion | None]:
    return {
        "edit_accuracy": metrics.edit_accuracy,
        "adapt_accuracy": metrics.adapt_accuracy,
        "generalization": metrics.generalization,
        "drawdown": metrics.drawdown,
        "locality": metrics.locality,
        "neighborhood": metrics.neighborhood,
    }
