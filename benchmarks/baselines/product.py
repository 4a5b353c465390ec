"""Salem itself as a method under test: its default, and the paper's recipe with nothing else.

Makes deltas as a job does and answers as the server does. Does not know how a delta is made.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.baselines.added import Added, earlier, first_batch_only
from benchmarks.baselines.contract import Editing
from salem.records import Edit, Hyperparameters, LayerScore, Recipe, TextInput
from worker.pipeline.steps import make_delta
from worker.recipes.base import Left


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
    return _made(editing, Hyperparameters(seed=editing.seed, scope_budget_per_edit=editing.setting))


def salem_paper(editing: Editing) -> Added:
    """SaLEM, section 3, as published. `setting`: the weight of the divergence."""
    first_batch_only(editing)
    return _made(editing, Hyperparameters(seed=editing.seed, recipe=Recipe.PAPER, kl_weight=editing.setting))


def known_paraphrases(corpus: Sequence[Edit]) -> tuple[tuple[TextInput, TextInput], ...]:
    """What a reference set with paraphrases would tell a job: texts of other edits that ask the same."""
    return tuple((edit, paraphrase) for edit in corpus for paraphrase in edit.paraphrase_samples)


def _made(editing: Editing, hyper: Hyperparameters) -> Added:
    before = earlier(editing)
    batch = editing.batch.model_copy(update={"equivalents": known_paraphrases(editing.corpus)})
    scoped = before[-1].scoped if before else None
    left = Left(metric=scoped.scope.metric if scoped else None, cache=editing.cache)
    made = make_delta(editing.network, before, batch, hyper, Quiet(), left)
    return Added(editing.network, (*before, made.delta))
