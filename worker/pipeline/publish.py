"""Step 8: stores the delta's files, then publishes the version and ends the job in one transaction."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from salem.deltas.files import pack
from salem.records import Delta, Metrics, Proportion, Version
from salem.scope.metric_files import pack_metric
from salem.storage.publication import AliasMove, Publication
from worker.pipeline.context import EditJob


def publish(job: EditJob) -> None:
    """Store the delta, publish the version with its entries, and end the job."""
    job.observer.phase("writing", 0.97)
    delta = store_delta(job)
    metrics = job.metrics.figures.model_copy(update={"notes": (*job.request.notes, *job.metrics.notes)})
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
        metric=delta.metric if job.trained.metric_is_new else None,
        given_metric=job.given_metric,
        alias=AliasMove(request.alias, request.alias_was) if request.alias else None,
    )
    job.attempt.end(job.attempt.registry.finish_edit, version, _result(job, delta, metrics), made)


def store_delta(job: EditJob) -> Delta:
    """Store the files of the delta and its metric. Nobody sees them until a version names them.

    The header says which base and delta it stands on, which metric the job was given, and how it was made. It
    holds no number that storage gives out, so the same chain of requests gives the same files.
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
        metrics=figures(job.metrics),
        **({"editor": editor.sha256} if editor else {}),
    )
    metric = None
    if scoped is not None:
        metric = scoped.scope.metric.sha256
        if job.trained.metric_is_new:
            metric = job.attempt.keep(pack_metric(scoped.scope.metric))
    return Delta(
        layer=job.layer.path,
        blob=job.attempt.keep(data),
        num_bytes=len(data),
        kind=term.kind,
        rank=term.rank,
        metric=metric,
    )


def _result(job: EditJob, delta: Delta, metrics: Metrics) -> dict[str, Any]:
    return {
        **summary(metrics),
        "failing_before": job.num_failing,
        "layer": job.layer.path,
        "layer_reason": job.reason,
        "editor": _editor(job),
        "kind": delta.kind,
        "rank": delta.rank,
        "delta_bytes": delta.num_bytes,
        "delta_sha256": delta.blob,
        "estimated_peak_bytes": job.estimate.num_bytes,
        "worker_seconds": round(time.monotonic() - job.began, 2),
    }


def _editor(job: EditJob) -> dict[str, str | None] | None:
    """Which editor made the delta; None for recipes without one."""
    if job.recipe.editor is not None:
        return {"id": job.recipe.editor, "way": "one pass"}
    return {"id": None, "way": "trained for this job"} if job.recipe.trains_editor else None


def figures(metrics: Metrics) -> dict[str, float | None]:
    """The headline figures of a version."""
    return {name: share.value if share else None for name, share in _proportions(metrics).items()}


def summary(metrics: Metrics) -> dict[str, Any]:
    """The metrics of a version in the result of its job: each figure with its interval, and the notes."""
    return {
        **{name: figure and figure.model_dump() for name, figure in _proportions(metrics).items()},
        "forgetting": metrics.forgetting and metrics.forgetting.model_dump(),
        "held_out": metrics.drawdown.count if metrics.drawdown else 0,
        "notes": list(metrics.notes),
    }


def _proportions(metrics: Metrics) -> dict[str, Proportion | None]:
    return {
        "edit_accuracy": metrics.edit_accuracy,
        "adapt_accuracy": metrics.adapt_accuracy,
        "generalization": metrics.generalization,
        "drawdown": metrics.drawdown,
        "locality": metrics.locality,
    }
