"""What a recipe is: a name, its options, its traits, and how it makes a delta from an edit dataset.

Each recipe is one file or folder in this package, and `worker.recipes.catalog` finds it there. The pipeline
asks the recipe wherever recipes differ. Must not know any recipe by name, jobs, or storage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field

from salem.deltas.terms import LayerDelta, Term
from salem.errors import EditFailed
from salem.models.network import Network
from salem.records import (
    DetailedMetrics,
    Edit,
    EditBatch,
    Entry,
    Layer,
    Record,
    ReferenceSample,
    Sample,
    SharedOptions,
)
from salem.scope.encoder import ScopeEncoder
from salem.scope.metric import Metric
from worker.activations.cache import SampleCache
from worker.dataset.split import without_seen_paraphrases
from worker.hypernetworks.files import TrainedEditor
from worker.recipes.memory import FLOAT_BYTES, UPDATE_COPIES, Footprint, second_moment_bytes
from worker.selection.candidates import middle_layers
from worker.training.loop import Learner, Prepared, Progress, prepare_dataset, train
from worker.training.options import LoopOptions, TrainingOptions


class LayerOptions(Record):
    """The options of recipes whose layer is chosen by trial edits."""

    candidates: Literal["recipe", "middle", "all"] = Field(
        default="recipe",
        description="Blocks that saliency chooses from: the recipe's own, the middle ones, or all of them",
    )
    trial_edits: int = Field(
        default=3,
        ge=0,
        le=64,
        description="How many of the most salient layers get a trial edit; the best trial decides. 0 "
        "takes the most salient layer",
    )


@dataclass(frozen=True)
class Artifacts:
    """What earlier jobs of the hosted model made and this job may use; each may be missing."""

    metric: Metric | None = None  # the hosted model's scope metric
    encoder: ScopeEncoder | None = None  # compares texts, whatever the hosted model is
    editor: TrainedEditor | None = None  # trained ahead; makes the edits in one pass
    cache: SampleCache | None = None  # activations of the base, without any delta


@dataclass(frozen=True)
class Exposure:
    """The edits that earlier jobs trained on. They cannot measure generalization."""

    chain: Sequence[Edit]  # edits of the deltas below
    metric: Sequence[Edit] = ()  # edits that the job's scope metric may have learned from
    reference: Sequence[ReferenceSample] = ()  # samples whose paraphrases the metric may have learned from


@dataclass(frozen=True)
class Trained:
    """What a recipe made."""

    term: Term
    warnings: tuple[str, ...] = ()
    entries: tuple[Entry, ...] = ()  # for a scoped term, one per edit
    metric_is_new: bool = False  # whether this job trained the term's metric


@dataclass(frozen=True)
class EditTask:
    """What a recipe makes a delta from."""

    network: Network
    parent: tuple[LayerDelta, ...]
    batch: EditBatch
    layer: Layer
    artifacts: Artifacts
    generator: torch.Generator
    progress: Progress

    @property
    def plain(self) -> tuple[LayerDelta, ...]:
        """The parent's deltas that act on every input.

        Scoped entries act on few inputs, and never beside another entry, so training leaves them out.
        """
        return tuple(delta for delta in self.parent if not delta.scoped)

    @property
    def cache(self) -> SampleCache | None:
        """The cache of the base's activations; None if plain deltas are applied while this job trains."""
        return None if self.plain else self.artifacts.cache

    def prepare(self) -> Prepared:
        """The edit dataset at the layer, with all pass samples."""
        batch = self.batch
        return prepare_dataset(self.network, batch.corrections, batch.pass_samples, self.layer, self.cache)

    def fit(self, prepared: Prepared, learner: Learner, options: TrainingOptions) -> Term:
        """Train and return the best term."""
        term, _ = train(self.network, prepared, learner, options, self.generator, self.progress)
        return term


class Recipe(ABC):
    """A way to make a delta. An instance is a recipe with the options of one job.

    Traits:
        scoped: its delta acts only inside scopes, so a later edit may override an earlier one.
        forgets: it can move away from an answer without a new target.
        trains_editor: it trains an editor (hypernetwork) for the job.
        takes_editor: it can use an editor that was trained ahead of time (option `editor`).
    """

    name: ClassVar[str]
    summary: ClassVar[str]  # one sentence for the docs and the API
    Options: ClassVar[type[SharedOptions]]
    scoped: ClassVar[bool] = False
    forgets: ClassVar[bool] = False
    trains_editor: ClassVar[bool] = False
    takes_editor: ClassVar[bool] = False

    options: SharedOptions

    def __init__(self, options: SharedOptions | None = None) -> None:
        self.options = options or self.Options()
        assert isinstance(self.options, self.Options), "a recipe takes its own options"

    @property
    def editor(self) -> str | None:
        """Id of the editor that the options name."""
        return None

    @property
    def num_trial_edits(self) -> int:
        """How many layers get a trial edit. With 0 or 1, the most salient layer is edited."""
        return self.options.trial_edits if isinstance(self.options, LayerOptions) else 0

    @property
    def margin(self) -> float:
        """Margin, in nats, by which a trial edit's answer must lead."""
        return 0.0

    @abstractmethod
    def make(self, task: EditTask) -> Trained:
        """Make the term that corrects the batch at the layer, on top of the parent.

        Raises:
            EditFailed: no token carries a gradient at the layer.
        """

    def candidate_layers(self, network: Network) -> tuple[Layer, ...]:
        """The layers to choose from when the request names none: the middle blocks by default."""
        every = isinstance(self.options, LayerOptions) and self.options.candidates == "all"
        return network.layers if every else middle_layers(network.layers)

    def without_seen(self, batch: EditBatch, exposure: Exposure) -> EditBatch:
        """The batch without held-out paraphrases that this recipe's delta may have learned from."""
        return without_seen_paraphrases(batch, exposure.chain)

    def failure(self, layer: Layer, edits: Sequence[Sample]) -> EditFailed:
        """The error if no edit holds after training, with advice."""
        if all(edit.forgets for edit in edits):
            return EditFailed(
                f"None of the {len(edits)} answers is forgotten after training at {layer.path}.",
                remedy="Raise options.max_steps, name another layer in options.layer, or give a target to "
                "answer instead.",
            )
        return EditFailed(
            f"None of the {len(edits)} edits holds after training at {layer.path}.", remedy=self.advice()
        )

    def advice(self) -> str:
        """What to try when no edit holds."""
        return "Name another layer in options.layer, or choose another recipe."

    def notes(self, metrics: DetailedMetrics, artifacts: Artifacts) -> Iterator[str]:
        """What the version's notes should say about the result."""
        yield from ()

    def footprint(self, network: Network, batch: EditBatch) -> Footprint:
        """What it trains on and holds. By default: all samples, and the update of one weight."""
        layer = max(network.layers, key=lambda layer: layer.d_in * layer.d_out)
        return Footprint(
            prepared_bytes=second_moment_bytes(layer),
            trained_bytes=UPDATE_COPIES * FLOAT_BYTES * layer.d_in * layer.d_out,
        )


def advice_to_train(options: LoopOptions) -> str:
    """What to try when training has not corrected any edit."""
    lower = "lower options.kl_weight, " if options.kl_weight else ""
    return f"Raise options.max_steps, {lower}or name another layer in options.layer."
