"""Step 6: lets the recipe make the delta at the layer."""

from __future__ import annotations

from dataclasses import replace

import torch

from worker.pipeline.context import ContextT
from worker.recipes.base import EditTask


def make_delta(context: ContextT) -> ContextT:
    """Set `trained`, the result of the recipe.

    Raises:
        EditFailed: no token carries a gradient at the layer.
    """
    observer = context.observer
    observer.phase("training" if context.artifacts.editor is None else "one pass", 0.2)
    task = EditTask(
        network=context.network,
        parent=context.parent,
        batch=context.training_batch,
        layer=context.layer,
        artifacts=context.artifacts,
        generator=torch.Generator().manual_seed(context.recipe.options.seed),
        progress=lambda share, figures: observer.figures(0.3 + 0.5 * share, figures),
    )
    return replace(context, trained=context.recipe.make(task))
