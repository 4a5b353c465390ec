"""The context that the pipeline's steps share: the input of one edit, and the results of the steps so far.

`EditContext` is what the method needs; `EditJob` adds storage. A step returns a copy with more fields set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from salem.deltas.terms import LayerDelta
from salem.inference.predict import is_right
from salem.models.network import Network
from salem.records import (
    Delta,
    DetailedMetrics,
    Edit,
    EditBatch,
    EditRequest,
    HostedModel,
    Layer,
    LayerScore,
    Sample,
    Sha256,
    Version,
)
from worker.attempts.attempt import Attempt
from worker.pipeline.history import EditHistory
from worker.recipes.base import Artifacts, Recipe, Trained
from worker.recipes.memory import Estimate
from worker.training.observer import Observer

_LATER: Any = None  # a later step sets it


@dataclass(frozen=True, kw_only=True)
class EditContext:
    """One edit: its samples, the recipe, and the model."""

    recipe: Recipe
    network: Network
    batch: EditBatch
    observer: Observer
    parent: tuple[LayerDelta, ...] = ()  # the deltas below the edit
    artifacts: Artifacts = field(default_factory=Artifacts)
    base_answers: Mapping[str, str] = field(default_factory=dict)  # by content hash of the input
    earlier_edits: Mapping[str, Sample] = field(default_factory=dict)  # of the parent, by id, newest first
    may_fail: bool = False  # keep the delta even if no edit holds (for replays)
    # predict
    parent_answers: Mapping[str, str] = field(default_factory=dict)  # by content hash of the input
    # layer
    training_batch: EditBatch = _LATER  # the batch, with the model's replacements for answers to forget
    layer: Layer = _LATER
    saliency: tuple[LayerScore, ...] = ()
    reason: str = ""  # why this layer
    # make
    trained: Trained = _LATER
    # measure
    metrics: DetailedMetrics = _LATER

    @property
    def delta(self) -> LayerDelta:
        """The delta that the recipe made."""
        return LayerDelta(self.layer.path, (self.trained.term,))

    @property
    def plain(self) -> tuple[LayerDelta, ...]:
        """The parent's deltas that act on every input."""
        return tuple(delta for delta in self.parent if not delta.scoped)

    @property
    def edits_before(self) -> tuple[tuple[Sample, str], ...]:
        """Each edit sample with the parent's answer."""
        return tuple((sample, self.parent_answers[sample.content_hash]) for sample in self.batch.edit_samples)

    @property
    def num_failing(self) -> int:
        """Number of edit samples that the parent answers incorrectly."""
        return sum(not is_right(answer, sample) for sample, answer in self.edits_before)


@dataclass(frozen=True, kw_only=True)
class EditJob(EditContext):
    """One edit job: a stored request on top of a stored version."""

    attempt: Attempt
    request: EditRequest
    model: HostedModel
    version: Version  # the parent
    history: EditHistory
    below: tuple[Delta, ...]  # the parent's deltas, as stored
    chain: tuple[Edit, ...]  # edits of these deltas, including removed ones
    given_metric: Sha256 | None  # blob of the scope metric that the job starts from
    began: float  # monotonic clock, in seconds
    # load
    network: Network = _LATER
    # dataset
    batch: EditBatch = _LATER
    # budget
    estimate: Estimate = _LATER


ContextT = TypeVar("ContextT", bound=EditContext)
