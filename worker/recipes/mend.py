"""The `mend` recipe: MEND on the job's own gradients, projected away from the inputs of pass samples.

MEND is Mitchell et al., ICLR 2022; the projection is AlphaEdit's (Fang et al., ICLR 2025). With an editor
that was trained ahead of time, the recipe makes the edits in one pass and trains nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pydantic import Field

from salem.deltas.terms import Dense, LowRank, applied
from salem.errors import EditFailed
from salem.models.network import Network
from salem.records import DetailedMetrics, EditBatch, Layer, Sample, SharedOptions
from worker.hypernetworks.mend_learner import MendTraining, mend_learner
from worker.hypernetworks.one_pass import one_pass_term
from worker.recipes.base import Artifacts, EditTask, LayerOptions, Recipe, Trained, advice_to_train
from worker.recipes.compression import smallest_that_holds
from worker.recipes.memory import FLOAT_BYTES, Footprint, second_moment_bytes

_EDITOR_COPIES = 4 * 4  # two blocks of two matrices; parameters, gradients, and two moments


class MendOptions(MendTraining, LayerOptions, SharedOptions):
    """Options of `mend`."""

    editor: str | None = Field(
        default=None,
        max_length=64,
        description="Id of an editor that was trained ahead of time. It makes the edits in one pass at its "
        "own layer; training options have no effect",
    )


class MendRecipe(Recipe):
    """Trains an editor for the job, or applies one that was trained ahead of time."""

    name = "mend"
    summary = (
        "An editor (MEND) turns the edits' gradients into one change of the layer that acts on every input."
    )
    Options = MendOptions
    forgets = True
    trains_editor = True
    takes_editor = True

    options: MendOptions

    @property
    def editor(self) -> str | None:
        return self.options.editor

    @property
    def num_trial_edits(self) -> int:
        return 0 if self.editor else super().num_trial_edits

    @property
    def margin(self) -> float:
        return self.options.margin

    def make(self, task: EditTask) -> Trained:
        if task.artifacts.editor is None:
            return Trained(mend_term(task, self.options))
        with applied(task.network.model, task.plain):
            return Trained(one_pass_term(task.network, task.layer, task.artifacts.editor.editor, task.batch))

    def failure(self, layer: Layer, edits: Sequence[Sample]) -> EditFailed:
        if self.editor is None:
            return super().failure(layer, edits)
        return EditFailed(
            f"None of the {len(edits)} edits holds after the one pass of {self.editor} at {layer.path}; "
            "nothing was trained.",
            remedy="Leave out options.editor to train for this job, or train an editor on edits more like "
            "these.",
        )

    def advice(self) -> str:
        return advice_to_train(self.options)

    def notes(self, metrics: DetailedMetrics, artifacts: Artifacts) -> Iterator[str]:
        if artifacts.editor is None:
            return
        edits = [outcome for outcome in metrics.outcomes if outcome.kind == "edit"]
        failing = [outcome for outcome in edits if not outcome.correct]
        if failing:
            yield (
                f"{len(failing)} of {len(edits)} edits do not hold after the one pass of {self.editor}, such "
                f"as /edits/{failing[0].edit}; nothing was trained; leave out options.editor to train for "
                "this job"
            )
        if len(edits) > artifacts.editor.num_together:
            yield (
                f"{self.editor} learned to apply {artifacts.editor.num_together} edits at once, but this job "
                f"has {len(edits)}; split the job, or train an editor with a higher num_together"
            )

    def footprint(self, network: Network, batch: EditBatch) -> Footprint:
        trained = editor_footprint(network, self.options.editor_rank)
        return trained if self.editor is None else replace(trained, pass_samples=0, prepared_bytes=0)


def mend_term(task: EditTask, options: MendTraining) -> LowRank | Dense:
    """Train an editor on the job's samples and return its update, compressed."""
    with applied(task.network.model, task.plain):
        prepared = task.prepare()
        learner = mend_learner(task.network, prepared, options, task.generator)
        term = task.fit(prepared, learner, options)
        assert isinstance(term, LowRank | Dense)
        return smallest_that_holds(task.network, prepared, term, options.margin)


def editor_footprint(network: Network, rank: int) -> Footprint:
    """What training an editor for the job takes."""
    layer = max(network.layers, key=lambda layer: layer.d_in + layer.d_out)
    return Footprint(
        prepared_bytes=second_moment_bytes(layer),
        trained_bytes=_EDITOR_COPIES * FLOAT_BYTES * rank * (layer.d_in + layer.d_out),
    )
