"""A removal job: makes the version that there would be without some edits of its parent.

Glue between storage, `removal_plan` (what becomes of each delta), and `worker.pipeline` (which trains some of
them again). Does not know how an attempt begins or fails.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from salem.deltas.files import pack
from salem.deltas.terms import LayerDelta
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
    HostedModel,
    LayerScore,
    RemoveRequest,
    Sha256,
    Version,
)
from salem.storage.publication import AliasMove, Publication
from worker.attempts.attempt import Attempt
from worker.attempts.reporting import JobReporter
from worker.evaluation import versions
from worker.evaluation.metrics import evaluate
from worker.jobs.removal_plan import Change, Step, cut, plan, reduced, remaining_batch
from worker.pipeline.budget import job_estimate
from worker.pipeline.context import EditJob
from worker.pipeline.dataset import requested_batch
from worker.pipeline.history import EditHistory
from worker.pipeline.layer import choose_layer
from worker.pipeline.make import make_delta
from worker.pipeline.measure import measure
from worker.pipeline.predict import predict_edits
from worker.pipeline.publish import store_delta, summary
from worker.recipes.catalog import recipe_of
from worker.recipes.memory import Estimate

REPLAY = (predict_edits, choose_layer, make_delta, measure)
# What `pack` writes by itself.
_OWN_HEADER = frozenset({"format_version", "base_sha256", "layer", "metric", "content_sha256"})


@dataclass(frozen=True)
class Link:
    """One delta of the new chain."""

    delta: Delta
    applied: LayerDelta
    batch: EditBatch  # that it was trained on
    left: tuple[int, ...]  # places in the batch of the edits that are in it
    entries: tuple[tuple[int, Entry], ...] = ()  # where it was made anew; each with the place of its edit
    replaces: Sha256 | None = None  # where it was made anew: the metric of what it stands for


@dataclass(frozen=True)
class Share:
    """Reports a training inside a larger job as a part of its progress; implements `Observer`."""

    reporter: JobReporter
    start: float
    end: float

    def phase(self, name: str, progress: float) -> None:
        self.reporter.phase("training", self._within(progress))

    def saliency(self, scores: Sequence[LayerScore]) -> None:
        """A job that trains several deltas has no one profile."""

    def figures(self, progress: float, figures: dict[str, float]) -> None:
        self.reporter.figures(self._within(progress), figures)

    def _within(self, progress: float) -> float:
        return self.start + (self.end - self.start) * progress


@dataclass(frozen=True)
class Chain:
    """The new chain while it grows, oldest delta first."""

    attempt: Attempt
    model: HostedModel
    parent: Version
    network: Network
    requests: dict[int, EditRequest]  # by the version that brought the edits
    history: EditHistory
    links: list[Link] = field(default_factory=list)

    def add(self, step: Step, observer: Share) -> None:
        """The next delta: as it was, without some entries, or trained again on what is below it now."""
        make = {Change.KEEP: self._keep, Change.DROP: self._drop, Change.REPLAY: self._replay}
        self.links.append(make[step.change](step, observer))

    def _keep(self, step: Step, observer: Share) -> Link:
        return self._link(step.delta.model_copy(update={"removed": step.removed}))

    def _drop(self, step: Step, observer: Share) -> Link:
        whole = self.attempt.stored(step.delta, self.model)
        newly = [step.delta.entry_of(place) for place in step.removed if place not in step.delta.removed]
        header = read_header(self.attempt.blobs.get(step.delta.blob))
        fields = {name: json.loads(text) for name, text in header.items() if name not in _OWN_HEADER}
        # What the file was measured at was measured with the entries that are gone.
        fields |= {"metrics": None, "removed": list(step.removed)}
        smaller = pack(cut(whole, newly), base_sha256=str(self.model.sha256), **fields)
        kept = {"blob": self.attempt.keep(smaller), "num_bytes": len(smaller), "removed": step.removed}
        return self._link(step.delta.model_copy(update=kept))

    def _link(self, delta: Delta) -> Link:
        """A delta that is not trained again, with what it was trained on."""
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
        return Link(delta, applied, self._fresh(request, batch, given, delta.version), left)

    def _fresh(
        self, request: EditRequest, batch: EditBatch, metric: Sha256 | None, version: int | None
    ) -> EditBatch:
        """A link's batch without what was trained on before it, `metric` being what its job was given."""
        exposure = self.history.exposure(self._edits_below(), metric, version)
        return recipe_of(request.options).without_seen(batch, exposure)

    def _edits_below(self) -> tuple[Edit, ...]:
        """The edits that are left in the new chain so far."""
        requests = [self._request(link.delta, link.delta.removed) for link in self.links]
        return tuple(edit for request in requests for edit in request.edits)

    def _replay(self, step: Step, observer: Share) -> Link:
        request = self._request(step.delta, step.removed)
        # The metric that the job was given then: what it made of it, it may have made of edits that are gone.
        header = read_header(self.attempt.blobs.get(step.delta.blob))
        given = json.loads(header["given_metric"])
        given = {link.replaces: link.delta.metric for link in self.links if link.replaces}.get(given, given)
        batch = self._fresh(request, self._batch(request), given, step.delta.version)
        recipe = recipe_of(request.options)
        job = EditJob(
            attempt=self.attempt,
            observer=observer,
            request=request,
            recipe=recipe,
            model=self.model,
            version=self.parent,
            history=self.history,
            below=tuple(link.delta for link in self.links),
            chain=self._edits_below(),
            given_metric=given,
            began=time.monotonic(),
            network=self.network,
            batch=batch,
            parent=tuple(link.applied for link in self.links),
            artifacts=self.attempt.artifacts(self.model, self.network, given, recipe.editor),
            may_fail=True,
        )
        for make_again in REPLAY:
            job = make_again(job)
        stored = store_delta(job)
        delta = stored.model_copy(update={"version": step.delta.version, "removed": step.removed})
        # Read back, as a later job would: the file is float32, whatever the network computes in.
        applied = self.attempt.unpacked(delta, self.model, self.network)
        entries = tuple((delta.index_of(row), entry) for row, entry in enumerate(job.trained.entries))
        left = tuple(range(len(request.edits)))
        return Link(delta, applied, batch, left, entries, replaces=step.delta.metric)

    def needed(self, steps: Sequence[Step]) -> list[Estimate]:
        """What each training of these steps will take."""
        requests = [self._request(s.delta, s.removed) for s in steps if s.change is Change.REPLAY]
        return [job_estimate(self.network, self._batch(each), recipe_of(each.options)) for each in requests]

    def _request(self, delta: Delta, removed: Sequence[int] = ()) -> EditRequest:
        assert delta.version is not None, "a published delta has its number"
        return reduced(self.requests[delta.version], removed)

    def _batch(self, request: EditRequest) -> EditBatch:
        return requested_batch(request, self.history)

    def _trained_without(self, delta: Delta) -> tuple[int, ...]:
        """What was removed already when the delta was trained: it was no part of its batch."""
        if delta.made_in is None or delta.made_in == delta.version:
            return ()
        made = self.attempt.version(self.model, delta.made_in).deltas
        return next(each.removed for each in made if each.version == delta.version)


def run(attempt: Attempt, reporter: JobReporter) -> None:
    """Make the version without the edits, measure it, and end the job.

    Raises:
        OverBudget: one of the trainings would need more memory than the job may take.
    """
    began = time.monotonic()
    request = RemoveRequest.model_validate(attempt.request())
    model = attempt.registry.get_model(request.model)
    parent = attempt.version(model, request.parent)
    requests = attempt.registry.entries.edit_requests(
        model.name, [delta.version for delta in parent.deltas if delta.version is not None]
    )
    gone: dict[int, set[int]] = {}
    for edit in map(EditId.parse, request.edits):
        gone.setdefault(edit.version, set()).add(edit.place)
    steps = plan(parent.deltas, gone, {number: len(asked.edits) for number, asked in requests.items()})
    reporter.phase("loading", 0.02)
    with attempt.loaded(model) as network:
        chain = Chain(attempt, model, parent, network, requests, EditHistory.of(attempt, model))
        peaks = chain.needed(steps)
        for peak in peaks:
            attempt.afford(peak, chain.network)
        for place, step in enumerate(steps):
            chain.add(step, Share(reporter, *(0.1 + 0.7 * (place + end) / len(steps) for end in (0, 1))))
        reporter.phase("evaluating", 0.82)
        metrics = _measure(chain, parent)
    reporter.phase("writing", 0.97)
    facts: dict[str, Any] = {"replayed": len(peaks)}
    if peaks:
        facts["estimated_peak_bytes"] = max(peak.num_bytes for peak in peaks)
    _publish(request, chain, parent, metrics, facts, time.monotonic() - began)


def _measure(chain: Chain, parent: Version) -> DetailedMetrics | None:
    """The new version against its parent, on the edits that are left; None where none is."""
    batch = remaining_batch([(link.batch, link.left) for link in chain.links])
    if not batch.edit_samples:
        return None
    longest = max(recipe_of(request.options).options.max_new_tokens for request in chain.requests.values())

    old = [chain.attempt.unpacked(delta, chain.model, chain.network) for delta in parent.deltas]
    new = [link.applied for link in chain.links]
    before, after = (versions.EditedModel(chain.network, deltas, longest) for deltas in (old, new))
    return evaluate(batch, before, after, generates=chain.network.task.generates)


def _publish(
    request: RemoveRequest,
    chain: Chain,
    parent: Version,
    metrics: DetailedMetrics | None,
    facts: dict[str, Any],
    seconds: float,
) -> None:
    """Write the version and the job's end in one transaction."""
    version = Version(
        model=chain.model.name,
        number=0,
        parent=parent.number,
        deltas=tuple(link.delta for link in chain.links),
        metrics=metrics and metrics.figures,
        options=None,
        layer=chain.links[-1].delta.layer if chain.links else None,
        job_id=chain.attempt.job.id,
        created_at=datetime.now(UTC),
    )
    nothing_left = {"notes": ["no edit is left: the version answers as the base"]}
    result = {
        **(nothing_left if metrics is None else summary(metrics)),
        "removed": list(request.edits),
        "edits_left": sum(len(link.left) for link in chain.links),
        **facts,
        "worker_seconds": round(seconds, 2),
    }
    made = Publication(
        entries={place: link.entries for place, link in enumerate(chain.links) if link.entries},
        outcomes=metrics.outcomes if metrics else (),
        flips=metrics.flips if metrics else (),
        metric=next(
            # A metric that was trained again, without what is gone, is the hosted model's from now on.
            (each.delta.metric for each in chain.links if each.replaces == chain.model.scope_metric),
            None,
        ),
        given_metric=chain.model.scope_metric,
        alias=AliasMove(request.alias, request.alias_was) if request.alias else None,
    )
    chain.attempt.end(chain.attempt.registry.finish_edit, version, result, made)
