"""An edit job: from a stored request to a measured version.

Glue between storage and `worker.pipeline`; does not know how an attempt begins or fails. What makes one delta
and stores it is here for removal jobs too, which train some deltas again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from salem.deltas.files import pack
from salem.deltas.terms import Scoped
from salem.records import (
    Delta,
    Edit,
    EditBatch,
    EditId,
    EditRequest,
    HostedModel,
    Hyperparameters,
    Metrics,
    Proportion,
    Recipe,
    ReferenceSample,
    Sample,
    Sha256,
    Version,
)
from salem.scope.metric_files import pack_metric
from salem.storage.rows.entries import MadeEntries
from worker.attempts.attempt import Attempt
from worker.attempts.reporting import JobReporter
from worker.dataset.split import build_edit_batch, without_seen_paraphrases
from worker.evaluation.reference import MAX_ANSWER_TOKENS
from worker.pipeline.budget import job_estimate
from worker.pipeline.steps import MeasuredDelta, make_edit


def run(attempt: Attempt, reporter: JobReporter) -> None:
    """Make a version of the corrections on top of the parent, and end the job.

    Raises:
        OverBudget: training would need more memory than the job may take.
    """
    began = time.monotonic()
    request = EditRequest.model_validate(attempt.request())
    model = attempt.registry.get_model(request.model)
    parent = attempt.version(model, request.parent)
    reporter.phase("loading", 0.02)
    with attempt.loaded(model) as network:
        deltas = [attempt.unpacked(delta, model, network) for delta in parent.deltas]
        taught = Taught.of(attempt, model)
        reference = [] if request.pass_samples is not None else taught.reference
        own, chain = batch_of(request, reference), taught.below(parent)
        batch = fresh(request, own, chain, model.scope_metric, taught)
        needed = job_estimate(network, batch, request.hyperparameters)
        attempt.afford(needed, network)
        left = attempt.left(model, network, model.scope_metric, request.hyperparameters.editor)
        left = replace(left, edits=standing(taught, parent))
        if request.hyperparameters.max_new_tokens == MAX_ANSWER_TOKENS:
            left = replace(left, answers={item.sample.content_hash: item.answer for item in reference})
        measured = make_edit(network, deltas, batch, request.hyperparameters, reporter, left)
    reporter.phase("writing", 0.97)
    facts = {
        "estimated_peak_bytes": needed.num_bytes,
        "worker_seconds": round(time.monotonic() - began, 2),
    }
    publish(attempt, request, model, parent, measured, facts)


@dataclass(frozen=True)
class Taught:
    """What jobs of a model have been trained on: the edits of every version, and the reference set."""

    edits: Mapping[int, Sequence[Edit]]  # by the number of the version that brought them
    reference: Sequence[ReferenceSample]

    @classmethod
    def of(cls, attempt: Attempt, model: HostedModel) -> Taught:
        return cls(attempt.registry.entries.edits(model.name), attempt.reference(model))

    def below(self, version: Version) -> list[Edit]:
        """The edits of a version's chain, those that were removed from it too."""
        numbers = [delta.version for delta in version.deltas if delta.version is not None]
        return [edit for number in numbers for edit in self.edits.get(number, ())]


def fresh(
    request: EditRequest,
    batch: EditBatch,
    chain: Sequence[Edit],
    metric: Sha256 | None,
    taught: Taught,
    before: int | None = None,
) -> EditBatch:
    """A job's batch without held-out paraphrases that were trained on before it.

    Args:
        chain: the edits of the deltas below.
        metric: that the job is given. It may have learned from any job of the model, and from the paraphrases
            that came with the reference set.
        before: the number of the version that the job made, where it is made again.
    """
    if request.hyperparameters.recipe is not Recipe.SCOPED or metric is None:
        return without_seen_paraphrases(batch, chain)
    others = [
        edit for number, edits in taught.edits.items() if before is None or number < before for edit in edits
    ]
    return without_seen_paraphrases(batch, [*chain, *others], taught.reference)


def standing(taught: Taught, version: Version) -> dict[str, Sample]:
    """Every edit that a version holds, by its id, the newest first."""
    return {
        str(EditId(number, place)): edit.sample
        for number, removed in reversed([(d.version, d.removed) for d in version.deltas])
        if number is not None
        for place, edit in enumerate(taught.edits.get(number, ()))
        if place not in removed
    }


def batch_of(request: EditRequest, reference: Sequence[ReferenceSample]) -> EditBatch:
    """The edit dataset of a request; the same request gives the same one."""
    return build_edit_batch(
        request.edits,
        reference,
        request.pass_samples,
        max_pass_samples=request.hyperparameters.max_pass_samples,
        max_held_out=request.hyperparameters.max_held_out,
        seed=request.hyperparameters.seed,
    )


def publish(
    attempt: Attempt,
    request: EditRequest,
    model: HostedModel,
    parent: Version,
    measured: MeasuredDelta,
    facts: dict[str, Any],
) -> None:
    """Write the delta, then the version and the job's end in one transaction."""
    delta = store(attempt, measured, model, request, below=parent.deltas, given=model.scope_metric)
    notes = (*request.notes, *measured.metrics.notes)
    metrics = measured.metrics.model_copy(update={"notes": notes})
    version = Version(
        model=model.name,
        number=0,
        parent=parent.number,
        deltas=(*parent.deltas, delta),
        metrics=metrics,
        hyperparameters=request.hyperparameters,
        layer=measured.made.layer.path,
        job_id=attempt.job.id,
        created_at=datetime.now(UTC),
    )
    result = {
        **summary(metrics),
        "failing_before": measured.num_failing,
        "layer": measured.made.layer.path,
        "layer_reason": measured.made.reason,
        "editor": way(request.hyperparameters),
        "kind": delta.kind,
        "rank": delta.rank,
        "delta_bytes": delta.num_bytes,
        "delta_sha256": delta.blob,
        **facts,
    }
    made = MadeEntries(
        {len(parent.deltas): list(enumerate(measured.made.entries))},
        metric=delta.metric if measured.made.metric_is_new else None,
    )
    finish, alias_was = attempt.registry.finish_edit, request.alias_was
    attempt.end(finish, version, request.alias, result, made, alias_was=alias_was)


def store(
    attempt: Attempt,
    measured: MeasuredDelta,
    model: HostedModel,
    request: EditRequest,
    *,
    below: Sequence[Delta],
    given: Sha256 | None,
) -> Delta:
    """Put the files of the delta and of its metric among the blobs: nobody sees them before a version does.

    The header says what it is, which delta it stands on, which metric the job was given and how it was made,
    and nothing of numbers that are given out in turn: the same chain of requests gives the same files.
    """
    term, scoped = measured.made.delta.terms[0], measured.made.delta.scoped
    data = pack(
        measured.made.delta,
        base_sha256=str(model.sha256),
        parent=below[-1].blob if below else None,
        given_metric=given if scoped else None,
        method=request.hyperparameters.recipe.value,
        rank=term.rank,
        seed=request.hyperparameters.seed,
        metrics=figures(measured.metrics),
        **({"editor": measured.made.editor.sha256} if measured.made.editor else {}),
    )
    return Delta(
        layer=measured.made.layer.path,
        blob=attempt.keep(data),
        num_bytes=len(data),
        kind=term.kind,
        rank=term.rank,
        metric=_stored_metric(attempt, measured, scoped) if scoped else None,
    )


def _stored_metric(attempt: Attempt, measured: MeasuredDelta, scoped: Scoped) -> str:
    """The file of a delta's metric, written where this job has made it."""
    if measured.made.metric_is_new:
        return attempt.keep(pack_metric(scoped.scope.metric))
    return scoped.scope.metric.sha256


def way(hyper: Hyperparameters) -> dict[str, str | None] | None:
    """Which editor made a delta and how it came by it; None for recipes that have no editor."""
    if hyper.editor is not None:
        return {"id": hyper.editor, "way": "one pass"}
    trained = hyper.recipe in (Recipe.MEND, Recipe.PAPER)
    return {"id": None, "way": "trained for this job"} if trained else None


def figures(metrics: Metrics) -> dict[str, float | None]:
    """The headline figures of a version."""
    return {name: share.value if share else None for name, share in _proportions(metrics).items()}


def summary(metrics: Metrics) -> dict[str, Any]:
    """What a job returns of a version's metrics: figures with their intervals, and notes."""
    intervals = {
        name: proportion and proportion.model_dump() for name, proportion in _proportions(metrics).items()
    }
    return {
        **figures(metrics),
        "intervals": intervals,
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
