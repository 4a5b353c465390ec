"""Step 4: asks the parent for its answers to the edit samples, before anything changes."""

from __future__ import annotations

from dataclasses import replace

from salem.inference.predict import predict
from worker.pipeline.context import ContextT


def predict_edits(context: ContextT) -> ContextT:
    """Set the answers before the edit."""
    context.observer.phase("predicting", 0.1)
    answers = predict(
        context.network,
        context.batch.edit_samples,
        context.parent,
        max_new_tokens=context.recipe.options.max_new_tokens,
    )
    return replace(context, before=tuple(answer.output for answer in answers))
