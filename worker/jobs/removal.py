"""A removal job: makes the version that the parent would be without some edits.

`removal_plan` decides what happens to each delta, and `worker.pipeline` trains some of them again. Must not
know how an attempt begins or fails.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from salem.deltas.files import OWN_HEADER, pack
from salem.deltas.terms import LayerDelta
from salem.models.chat import TurnFinder
from salem.models.network import Network
from salem.models.tensor_files import read_header
from salem.records import (
    Delta,
    DetailedMetrics,
    Edit,
    EditBatch,
    EditId,
    EditRequest,
    Entry,
    HeadlineMetrics,
    HostedModel,
    LayerScore,
    RemovalResult,
    RemoveRequest,
    Sha256,
    Version,
)
from salem.storage.publication import AliasMove, Publication
from worker.attempts.attempt import Attempt
from worker.attempts.reporting import JobReporter
from worker.evaluation import versions
from worker.evaluation.metrics import evaluate
from worker.evaluation.neighborhood import notes_on_neighbors
from worker.jobs.removal_plan import Change, Step, cut, plan, reduced, remaining_batch
from worker.pipeline.budget import job_estimate
from worker.pipeline.context import EditJob
from worker.pipeline.dataset import requested_batch
from worker.pipeline.history import EditHistory
from worker.pipeline.layer import choose_layer
from worker.pipeline.make import make_delta
from worker.pipeline.measure import measure
from worker.pipeline.predict import predict_edits
from worker.pipeline.publish import headline, store_delta
from worker.recipes.catalog import recipe_of
from worker.recipes.memory import Estimate

NO_EDITS_REMAIN = "no edits remain; the version answers like the base"
REPLAY = (predict_edits, choose_layer, make_delta, measure)


@dataclass(frozen=True)
class NewDelta:
    """One delta of the new chain."""

    delta: Delta
    applied: LayerDelta
    batch: EditBatch  # what it was trained on
    remaining: tuple[int, ...]  # rows of the batch whose edits remain
    entries: tuple[tuple[int, Entry], ...] = ()  # after a replay: each with the index of its edit
    replaces: Sha256 | None = None  # after a replay: the metric of the old delta


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


@dataclass(frozen=True)
class NewChain:
    """The new chain while it is built, oldest delta first."""

    attempt: Attempt
    model: HostedModel
    parent: Version
    network: Network
    requests: dict[int, EditRequest]  # by the version that introduced the edits
    history: EditHistory
    deltas: list[NewDelta] = field(default_factory=list)

    def add(self, step: Step, observer: PartialProgress) -> None:
        """Add a delta: unchanged, without some entries, or trained again on the new chain so far."""
        make = {Change.KEEP: self._keep, Change.DROP: self._drop, Change.REPLAY: self._replay}
        self.deltas.append(make[step.change](step, observer))

    def _keep(self, step: Step, observer: PartialProgress) -> NewDelta:
        return self._kept(step.delta.model_copy(update={"removed": step.removed}))

    def _drop(self, step: Step, observer: PartialProgress) -> NewDelta:
        whole = self.attempt.stored(step.delta, self.model)
        newly = [step.delta.entry_of(place) for place in step.removed if place not in step.delta.removed]
        header = read_header(self.attempt.blobs.get(step.delta.blob))
        fields = {name: json.loads(text) for name, text in header.items() if name not in OWN_HEADER}
        # The old metrics include the removed entries.
        fields |= {"metrics": None, "removed": list(step.removed)}
        smaller = pack(cut(whole, newly), base_sha256=str(self.model.sha256), **fields)
        kept = {"blob": self.attempt.keep(smaller), "num_bytes": len(smaller), "removed": step.removed}
        return self._kept(step.delta.model_copy(update=kept))

    def _kept(self, delta: Delta) -> NewDelta:
        """A delta that is not trained again, with the batch that it was trained on."""
        before = self._trained_without(delta)
        everything = range(len(self._request(delta).edits))
        there = [place for place in everything if place not in before]
        left = tuple(row for row, place in enumerate(there) if place not in delta.removed)
        applied = self.attempt.unpacked(delta, self.model, self.network)
        request = self._request(delta, before)
        batch = self._batch(request)
        apart = tuple((row, sample) for row, sample in batch.held_out_paraphrases if row in left)
        batch = batch.model_copy(update={"held_out_paraphrases": apart})
        header = read_header(self.attempt.blobs.get(delta.blob))
        given = json.loads(header["given_metric"])
        return NewDelta(delta, applied, self._without_seen(request, batch, given, delta.version), left)

    def _without_seen(
        self, request: EditRequest, batch: EditBatch, metric: Sha256 | None, version: int | None
    ) -> EditBatch:
        """A batch without what earlier jobs trained on. `metric`: the one that its job started from."""
        exposure = self.history.exposure(self._edits_below(), metric, version)
        return recipe_of(request.options).without_seen(batch, exposure)

    def _edits_below(self) -> tuple[Edit, ...]:
        """The edits that remain in the new chain so far."""
        requests = [self._request(new.delta, new.delta.removed) for new in self.deltas]
        return tuple(edit for request in requests for edit in request.edits)

    def _replay(self, step: Step, observer: PartialProgress) -> NewDelta:
        request = self._request(step.delta, step.removed)
        # Start from the metric that the job started from: the one that it made may know the removed edits.
        header = read_header(self.attempt.blobs.get(step.delta.blob))
        given = json.loads(header["given_metric"])
        given = {new.replaces: new.delta.metric for new in self.deltas if new.replaces}.get(given, given)
        batch = self._without_seen(request, self._batch(request), given, step.delta.version)
        recipe = recipe_of(request.options)
        job = EditJob(
            attempt=self.attempt,
            observer=observer,
            request=request,
            recipe=recipe,
            model=self.model,
            version=self.parent,
            history=self.history,
            below=tuple(new.delta for new in self.deltas),
            chain=self._edits_below(),
            given_metric=given,
            began=time.monotonic(),
            network=self.network,
            batch=batch,
            parent=tuple(new.applied for new in self.deltas),
            artifacts=self.attempt.artifacts(self.model, self.network, given, recipe.editor),
            may_fail=True,
        )
        for make_again in REPLAY:
            job = make_again(job)
        stored = store_delta(job)
        delta = stored.model_copy(update={"version": step.delta.version, "removed": step.removed})
        # Read it back, as a later job would: the file is float32, whatever the network's type is.
        applied = self.attempt.unpacked(delta, self.model, self.network)
        entries = tuple((delta.index_of(row), entry) for row, entry in enumerate(job.trained.entries))
        left = tuple(range(len(request.edits)))
        return NewDelta(delta, applied, batch, left, entries, replaces=step.delta.metric)

    def needed(self, steps: Sequence[Step]) -> list[Estimate]:
        """The memory estimate of each replay."""
        requests = [self._request(s.delta, s.removed) for s in steps if s.change is Change.REPLAY]
        return [job_estimate(self.network, self._batch(each), recipe_of(each.options)) for each in requests]

    def _request(self, delta: Delta, removed: Sequence[int] = ()) -> EditRequest:
        assert delta.version is not None, "a published delta has a version"
        return reduced(self.requests[delta.version], removed)

    def _batch(self, request: EditRequest) -> EditBatch:
        return requested_batch(request, self.history, self.network)

    def _trained_without(self, delta: Delta) -> tuple[int, ...]:
        """Indexes of edits that were removed before the delta was trained, so its batch lacks them."""
        if delta.made_in is None or delta.made_in == delta.version:
            return ()
        made = self.attempt.version(self.model, delta.made_in).deltas
        return next(each.removed for each in made if each.version == delta.version)


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
    near = notes_on_neighbors(metrics, batch.edit_samples, TurnFinder.of(network.tokenizer))
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
