"""A removal job: makes the version that the parent would be without some edits.

`removal_plan` decides what happens to each delta, and `worker.pipeline` trains some of them again. Must not
know how an attempt begins or fails.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from salem.records import (
    DetailedMetrics,
    EditId,
    HeadlineMetrics,
    LayerScore,
    RemovalResult,
    RemoveRequest,
    Version,
)
from salem.storage.publication import AliasMove, Publication
from worker.attempts.attempt import Attempt
from worker.attempts.reporting import JobReporter
from worker.evaluation import versions
from worker.evaluation.metrics import evaluate
from worker.evaluation.neighborhood import notes_on_neighbors
from worker.jobs.removal_chain import NewChain
from worker.jobs.removal_plan import plan, remaining_batch
from worker.pipeline.history import EditHistory
from worker.pipeline.publish import headline
from worker.recipes.catalog import recipe_of

NO_EDITS_REMAIN = "no edits remain; the version answers like the base"


@dataclass(frozen=True)
class PartialProgress:
    """Reports one training run as a part of a job's progress. Implements `Observer`."""

    reporter: JobReporter
    start: float
    end: float

    def phase(self, name: str, progress: float) -> None:
        self.reporter.phase("training", self._within(progress))

    def saliency(self, scores: Sequence[LayerScore]) -> None:
        """Does nothing: a job that trains several deltas has no single saliency profile."""

    def figures(self, progress: float, figures: dict[str, float]) -> None:
        self.reporter.figures(self._within(progress), figures)

    def _within(self, progress: float) -> float:
        return self.start + (self.end - self.start) * progress


def run(attempt: Attempt, reporter: JobReporter) -> None:
    """Make the version without the edits, measure it, and end the job.

    Raises:
        OverBudget: a replay would need more memory than the job may use.
    """
    began = time.monotonic()
    request = RemoveRequest.model_validate(attempt.request())
    model = attempt.registry.get_model(request.model)
    parent = attempt.version(model, request.parent)
    requests = attempt.registry.entries.edit_requests(
        model.name, [delta.version for delta in parent.deltas if delta.version is not None]
    )
    to_remove: dict[int, set[int]] = {}
    for edit in map(EditId.parse, request.edits):
        to_remove.setdefault(edit.version, set()).add(edit.place)
    num_edits = {number: len(each.edits) for number, each in requests.items()}
    steps = plan(parent.deltas, to_remove, num_edits)
    reporter.phase("loading", 0.02)
    with attempt.loaded(model) as network:
        chain = NewChain(attempt, model, parent, network, requests, EditHistory.of(attempt, model))
        peaks = chain.needed(steps)
        for peak in peaks:
            attempt.check_memory(peak, chain.network)
        for place, step in enumerate(steps):
            chain.add(
                step, PartialProgress(reporter, *(0.1 + 0.7 * (place + end) / len(steps) for end in (0, 1)))
            )
        reporter.phase("evaluating", 0.82)
        metrics = _measure(chain, parent)
    reporter.phase("writing", 0.97)
    result = RemovalResult(
        **dict(headline(metrics) if metrics else HeadlineMetrics(notes=(NO_EDITS_REMAIN,))),
        version="",
        removed=request.edits,
        edits_left=sum(len(new.remaining) for new in chain.deltas),
        replayed=len(peaks),
        estimated_peak_bytes=max((peak.num_bytes for peak in peaks), default=None),
        worker_seconds=round(time.monotonic() - began, 2),
    )
    _publish(request, chain, metrics, result)


def _measure(chain: NewChain, parent: Version) -> DetailedMetrics | None:
    """Measure the new version against its parent on the remaining edits; None if no edit remains."""
    network = chain.network
    batch = remaining_batch([(new.batch, new.remaining) for new in chain.deltas])
    if not batch.edit_samples:
        return None
    longest = max(recipe_of(request.options).options.max_new_tokens for request in chain.requests.values())

    old = [chain.attempt.unpacked(delta, chain.model, network) for delta in parent.deltas]
    new = [new.applied for new in chain.deltas]
    before, after, base = (versions.EditedModel(network, deltas, longest) for deltas in (old, new, ()))
    metrics = evaluate(batch, before, after, generates=network.task.generates, unedited=base)
    near = notes_on_neighbors(metrics, batch.edit_samples, network.turns)
    return metrics.model_copy(update={"notes": (*metrics.notes, *near)})


def _publish(
    request: RemoveRequest,
    chain: NewChain,
    metrics: DetailedMetrics | None,
    result: RemovalResult,
) -> None:
    """Publish the version and end the job in one transaction."""
    version = Version(
        model=chain.model.name,
        number=0,
        parent=chain.parent.number,
        deltas=tuple(new.delta for new in chain.deltas),
        metrics=metrics and metrics.overall,
        options=None,
        layer=chain.deltas[-1].delta.layer if chain.deltas else None,
        job_id=chain.attempt.job.id,
        created_at=datetime.now(UTC),
    )
    made = Publication(
        entries={place: new.entries for place, new in enumerate(chain.deltas) if new.entries},
        outcomes=metrics.outcomes if metrics else (),
        flips=metrics.flips if metrics else (),
        broken_neighbors=metrics.broken_neighbors if metrics else (),
        metric=next(
            # A metric that was trained again without the removed edits becomes the hosted model's metric.
            (each.delta.metric for each in chain.deltas if each.replaces == chain.model.scope_metric),
            None,
        ),
        given_metric=chain.model.scope_metric,
        alias=AliasMove(request.alias, request.alias_was) if request.alias else None,
    )
    # publication adds the version: its number is not known before
    fields = result.model_dump(mode="json", exclude={"version"})
    chain.attempt.end(chain.attempt.registry.finish_edit, version, fields, made)
