"""Step 7: measures the new version against its parent, on samples that training never saw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from salem.inference.predict import is_right
from salem.messages import first_few, quote
from worker.evaluation.earlier_edits import notes_on_lost_edits
from worker.evaluation.metrics import evaluate
from worker.evaluation.neighborhood import notes_on_neighbors
from worker.evaluation.versions import EditedModel, OverlaidModel, on_top
from worker.pipeline.context import ContextT, EditContext


def measure(context: ContextT) -> ContextT:
    """Set the metrics. Call it after the steps predict, layer, and make.

    Raises:
        EditFailed: no edit holds after training, unless `may_fail` is set.
    """
    context.observer.phase("evaluating", 0.85)
    network, recipe = context.network, context.recipe
    before = EditedModel(network, context.parent, recipe.options.max_new_tokens)
    # Measure what is served: on a GPU, a plain delta is cast to the model's type, which may be narrower.
    delta = context.delta.to(network.device, network.model.dtype)
    after = on_top(before, delta, context.artifacts.cache)
    before.known.update(context.parent_answers)
    if not context.parent and isinstance(after, OverlaidModel):
        before.known.update(context.base_answers)
    lost = notes_on_lost_edits(network, before, after, context.earlier_edits, context.batch)
    notes = (*context.trained.warnings, *_not_given(context), *_unprotected(context), *lost)
    metrics = evaluate(context.batch, before, after, generates=network.task.generates, notes=notes)
    if metrics.edit_accuracy.value == 0 and not context.may_fail:
        raise recipe.failure(context.layer, context.batch.edit_samples)
    near = notes_on_neighbors(metrics, context.batch.edit_samples, network.turns)
    notes = (*metrics.notes, *near, *recipe.notes(metrics, context.artifacts))
    return replace(context, metrics=metrics.model_copy(update={"notes": notes}))


def _not_given(context: EditContext) -> Iterator[str]:
    """Notes for edits that forget an answer that the parent does not give, so their outcomes say little."""
    turns = context.network.turns
    notes = (
        f"the answer to {turns.quote(sample.input)} was {quote(output)}, not "
        f"{quote(sample.answer)}, which the edit forgets; to change the current answer, forget that one"
        for sample, output in context.edits_before
        if sample.forgets and is_right(output, sample)
    )
    return iter(first_few(notes, "answers to forget that the model does not give"))


def _unprotected(context: EditContext) -> Iterator[str]:
    if not context.batch.pass_samples:
        yield "no pass samples: other answers were not protected"
