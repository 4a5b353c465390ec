"""What every recipe is given, and what it makes.

Knows the parts of a job that shape a term. Does not know any recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from salem.deltas.terms import LayerDelta, Term
from salem.models.network import Network
from salem.records import EditBatch, Entry, Hyperparameters, Layer, Sample
from salem.scope.metric import Metric
from worker.activations.cache import SampleCache
from worker.hypernetworks.files import TrainedEditor
from worker.training.loop import Learner, Prepared, Progress, prepare_dataset, train


@dataclass(frozen=True)
class Trained:
    """What a recipe made."""

    term: Term
    warnings: tuple[str, ...] = ()
    entries: tuple[Entry, ...] = ()  # of a scoped term
    metric_is_new: bool = False  # whether the term's metric was trained here


@dataclass(frozen=True)
class Left:
    """What earlier jobs of the same hosted model left for this one; each may be missing."""

    metric: Metric | None = None  # the hosted model's scope metric
    editor: TrainedEditor | None = None  # to make this job's edits in one pass, instead of training
    cache: SampleCache | None = None  # of the base, without any delta
    answers: Mapping[str, str] = field(default_factory=dict)  # of the base, by content hash of the input
    edits: Mapping[str, Sample] = field(
        default_factory=dict
    )  # that the parent version holds, by id, newest first


@dataclass(frozen=True)
class Work:
    """What every recipe is given."""

    network: Network
    parent: tuple[LayerDelta, ...]
    left: Left
    batch: EditBatch
    layer: Layer
    hyper: Hyperparameters
    generator: torch.Generator
    progress: Progress

    @property
    def plain(self) -> tuple[LayerDelta, ...]:
        """The parent's deltas that act on every input.

        Its scoped entries act on few and never beside another entry; they take no part in training.
        """
        return tuple(delta for delta in self.parent if not delta.scoped)

    @property
    def cache(self) -> SampleCache | None:
        """What is known of samples, where the network answers as its base while it is trained on."""
        return None if self.plain else self.left.cache

    def prepare(self) -> Prepared:
        """The edit dataset at the layer, with all pass samples."""
        batch = self.batch
        return prepare_dataset(self.network, batch.corrections, batch.pass_samples, self.layer, self.cache)

    def fit(self, prepared: Prepared, learner: Learner) -> Term:
        """Run the loop and keep the best term."""
        term, _ = train(self.network, prepared, learner, self.hyper, self.generator, self.progress)
        return term
