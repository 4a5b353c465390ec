"""The chain that a removal makes: each delta of the parent, kept, cut, or trained again.

Must not know what plans the steps, how an attempt ends, or how a version is published.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from salem.deltas.files import OWN_HEADER, pack
from salem.deltas.terms import LayerDelta
from salem.models.network import Network
from salem.models.tensor_files import read_header
from salem.records import (
    Delta,
    Edit,
    EditBatch,
    EditRequest,
    Entry,
    HostedModel,
    Sha256,
    Version,
)
from worker.attempts.attempt import Attempt
from worker.jobs.removal_plan import Change, Step, cut, reduced
from worker.pipeline.budget import job_estimate
from worker.pipeline.context import EditJob
from worker.pipeline.dataset import requested_batch
from worker.pipeline.history import EditHistory
from worker.pipeline.layer import choose_layer
from worker.pipeline.make import make_delta
from worker.pipeline.measure import measure
from worker.pipeline.predict import predict_edits
from worker.pipeline.publish import store_delta
from worker.recipes.catalog import recipe_of
from worker.recipes.memory import Estimate
from worker.training.observer import Observer

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
class NewChain:
    """The new chain while it is built, oldest delta first."""

    attempt: Attempt
    model: HostedModel
    parent: Version
    network: Network
    requests: dict[int, EditRequest]  # by the version that introduced the edits
    history: EditHistory
    deltas: list[NewDelta] = field(default_factory=list)

    def add(self, step: Step, observer: Observer) -> None:
        """Add a delta: unchanged, without some entries, or trained again on the new chain so far."""
        make = {Change.KEEP: self._keep, Change.DROP: self._drop, Change.REPLAY: self._replay}
        self.deltas.append(make[step.change](step, observer))

    def _keep(self, step: Step, observer: Observer) -> NewDelta:
        return self._kept(step.delta.model_copy(update={"removed": step.removed}))

    def _drop(self, step: Step, observer: Observer) -> NewDelta:
        whole = self.attempt.stored(step.delta, self.model)
        newly = [step.delta.entry_of(place) for place in step.removed if place not in step.delta.removed]
        # The old metrics include the removed entries.
        fields = self._header(step.delta) | {"metrics": None, "removed": list(step.removed)}
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
        given = self._header(delta)["given_metric"]
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

    def _replay(self, step: Step, observer: Observer) -> NewDelta:
        request = self._request(step.delta, step.removed)
        # Start from the metric that the job started from: the one that it made may know the removed edits.
        given = self._header(step.delta)["given_metric"]
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

    def _header(self, delta: Delta) -> dict[str, Any]:
        """What a delta's file says about itself, without what `pack` writes on its own."""
        header = read_header(self.attempt.blobs.get(delta.blob))
        return {name: json.loads(text) for name, text in header.items() if name not in OWN_HEADER}

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
