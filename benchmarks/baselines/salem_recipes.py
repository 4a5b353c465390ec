"""Salem's own recipes as methods under test: the default recipe and the paper's.

Makes deltas as a job does and answers as the server does. Must not know how a recipe works.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.baselines.interface import Editing
from benchmarks.baselines.weight_deltas import NetworkWithDeltas, earlier_deltas, first_batch_only
from salem.records import Edit, LayerScore, TextInput
from worker.pipeline.context import EditContext
from worker.pipeline.layer import choose_layer
from worker.pipeline.make import make_delta
from worker.recipes.base import Artifacts, Recipe
from worker.recipes.paper import PaperOptions, PaperRecipe
from worker.recipes.scoped.options import ScopedOptions
from worker.recipes.scoped.recipe import ScopedRecipe


class SilentObserver:
    """An observer that ignores everything."""

    def phase(self, name: str, progress: float) -> None:
        """Ignore the start of a phase."""

    def saliency(self, scores: Sequence[LayerScore]) -> None:
        """Ignore the layers' scores."""

    def figures(self, progress: float, figures: dict[str, float]) -> None:
        """Ignore the training figures."""


def salem(editing: Editing) -> NetworkWithDeltas:
    """The default recipe. `setting`: the share of pass samples that each edit may bring inside a scope."""
    options = ScopedOptions(seed=editing.seed, scope_budget_per_edit=editing.setting)
    return _made(editing, ScopedRecipe(options))


def salem_paper(editing: Editing) -> NetworkWithDeltas:
    """SaLEM, section 3, as published. `setting`: the weight of the divergence."""
    first_batch_only(editing)
    return _made(editing, PaperRecipe(PaperOptions(seed=editing.seed, kl_weight=editing.setting)))


def known_paraphrases(corpus: Sequence[Edit]) -> tuple[tuple[TextInput, TextInput], ...]:
    """Pairs of texts with the same meaning, as a job gets them from a reference set with paraphrases."""
    return tuple((edit, paraphrase) for edit in corpus for paraphrase in edit.paraphrase_samples)


def _made(editing: Editing, recipe: Recipe) -> NetworkWithDeltas:
    before = earlier_deltas(editing)
    batch = editing.batch.model_copy(update={"equivalents": known_paraphrases(editing.corpus)})
    scoped = before[-1].scoped if before else None
    edit = EditContext(
        recipe=recipe,
        network=editing.network,
        batch=batch,
        observer=SilentObserver(),
        parent=tuple(before),
        artifacts=Artifacts(metric=scoped.scope.metric if scoped else None, cache=editing.cache),
    )
    made = make_delta(choose_layer(edit))
    return NetworkWithDeltas(editing.network, (*before, made.delta))
