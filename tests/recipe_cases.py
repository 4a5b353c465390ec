"""Recipes with options for tiny models, and steps of the pipeline without storage."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.baselines.salem_recipes import SilentObserver
from salem.deltas.terms import LayerDelta
from salem.models.network import Network
from salem.records import EditBatch, Layer
from worker.pipeline.context import EditContext
from worker.pipeline.layer import choose_layer
from worker.pipeline.make import make_delta
from worker.pipeline.measure import measure
from worker.pipeline.predict import predict_edits
from worker.recipes.base import Artifacts, EditTask, Recipe, Trained
from worker.recipes.catalog import recipe_classes

RECIPES = ("scoped", "mend", "ridge", "paper")
RATES = {"scoped": 0.15, "mend": 3e-2, "paper": 3e-2}
SIZES = {"max_steps": 100, "null_space_rank": 2, "metric_width": 16, "editor_rank": 8, "kl_weight": 0.1}


def bare_recipe(name: str, **options: object) -> Recipe:
    """A recipe with its own defaults, except for some options."""
    kind = recipe_classes()[name]
    return kind(kind.Options.model_validate(options))


def recipe(name: str, **options: object) -> Recipe:
    """A recipe for a tiny model. Options that it does not have are left out."""
    given = {**SIZES, **({"learning_rate": RATES[name]} if name in RATES else {}), **options}
    known = recipe_classes()[name].Options.model_fields
    return bare_recipe(name, **{option: value for option, value in given.items() if option in known})


def edit_task(
    network: Network,
    batch: EditBatch,
    layer: Layer,
    parent: Sequence[LayerDelta] = (),
    artifacts: Artifacts | None = None,
    seed: int = 0,
) -> EditTask:
    """The input of a recipe."""
    generator = torch.Generator().manual_seed(seed)
    parts = tuple(parent), batch, layer, artifacts or Artifacts(), generator
    return EditTask(network, *parts, progress=lambda share, figures: None)


def trained(
    network: Network, batch: EditBatch, layer: Layer, recipe: Recipe, parent: Sequence[LayerDelta] = ()
) -> Trained:
    """The result of a recipe at a layer."""
    return recipe.make(edit_task(network, batch, layer, parent, seed=recipe.options.seed))


def edit_context(network: Network, batch: EditBatch, recipe: Recipe, **more: object) -> EditContext:
    """The start of an edit without storage."""
    given = {"observer": SilentObserver(), **more}
    return EditContext(network=network, batch=batch, recipe=recipe, **given)


def made(context: EditContext) -> EditContext:
    """The edit with its delta."""
    return make_delta(choose_layer(context))


def measured(context: EditContext) -> EditContext:
    """The edit with its delta and its metrics."""
    return measure(made(predict_edits(context)))
