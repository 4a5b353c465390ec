"""Salem itself as a method under test: its default recipe, and the recipe of the paper.

Makes deltas like a job and answers like the server. Does not know how a delta is made.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.baselines.added import Added, earlier, first_batch_only
from benchmarks.baselines.contract import Editing
from salem.records import Edit, LayerScore, TextInput
from worker.pipeline.context import EditContext
from worker.pipeline.layer import choose_layer
from worker.pipeline.make import make_delta
from worker.recipes.base import Artifacts, Recipe
from worker.recipes.paper import PaperOptions, PaperRecipe
from worker.recipes.scoped.options import ScopedOptions
from worker.recipes.scoped.recipe import ScopedRecipe


class Quiet:
    """An observer that only listens."""

    def phase(self, name: str, progress: float) -> None:
        """A phase began."""

    def saliency(self, scores: Sequence[LayerScore]) -> None:
        """Every layer's score is known."""

    def figures(self, progress: float, figures: dict[str, float]) -> None:
        """Training was looked at."""


def salem(editing: Editing) -> Added:
    """The product's default. `setting`: the share of pass samples that one edit may add inside any scope."""
    options = ScopedOptions(seed=editing.seed, scope_budget_per_edit=editing.setting)
    return _made(editing, ScopedRecipe(options))


def salem_paper(editing: Editing) -> Added:
    """SaLEM, section 3, as published. `setting`: the weight of the divergence."""
    first_batch_only(editing)
    return _made(editing, PaperRecipe(PaperOptions(seed=editing.seed, kl_weight=editing.setting)))


def known_paraphrases(corpus: Sequence[Edit]) -> tuple[tuple[TextInput, TextInput], ...]:
    """Pairs of texts that mean the same, as a reference set with paraphrases would give them to a job."""
    return tuple((edit, paraphrase) for edit in corpus for paraphrase in edit.paraphrase_samples)


def _made(editing: Editing, recipe: Recipe) -> Added:
    before = earlier(editing)
    batch = editing.batch.model_copy(update={"equivalents": known_paraphrases(editing.corpus)})
    scoped = before[-1].scoped if before else None
    edit = EditContext(
        recipe=recipe,
        network=editing.network,
        batch=batch,
        observer=Quiet(),
        parent=tuple(before),
        artifacts=Artifacts(metric=scoped.scope.metric if scoped else None, cache=editing.cache),
    )
    made = make_delta(choose_layer(edit))
    return Added(editing.network, (*before, made.delta))
