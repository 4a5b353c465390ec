"""Step 5: chooses the layer to edit: the one that the request names, or by saliency and trial edits."""

from __future__ import annotations

from dataclasses import replace

import torch

from salem.deltas.terms import applied
from salem.models.layers import layer_at
from salem.models.network import Network
from salem.records import EditBatch, Layer, LayerScore
from worker.dataset.forgetting_targets import add_forgetting_targets
from worker.pipeline.context import ContextT
from worker.recipes.base import Recipe
from worker.selection.saliency import drawn_samples, layer_saliency, most_salient, score_records, shortlist
from worker.selection.trials import trial_edits


def choose_layer(context: ContextT) -> ContextT:
    """Set the layer, every layer's score, and the reason. The parent's plain deltas are applied."""
    network = context.network
    with applied(network.model, context.plain):
        context = replace(context, training_batch=add_forgetting_targets(network, context.batch))
    if (editor := context.artifacts.editor) is not None:
        reason = f"{editor.layer.path} is the layer of {context.recipe.editor}."
        return replace(context, layer=editor.layer, reason=reason)
    context.observer.phase("saliency", 0.15)
    with applied(network.model, context.plain):
        layer, scores, reason = _chosen(network, context.training_batch, context.recipe)
    context.observer.saliency(scores)
    return replace(context, layer=layer, saliency=scores, reason=reason)


def _chosen(network: Network, batch: EditBatch, recipe: Recipe) -> tuple[Layer, tuple[LayerScore, ...], str]:
    """The layer, every layer's score, and a sentence that says why this layer was chosen."""
    drawn = drawn_samples(batch.corrections, recipe.options)
    scores = layer_saliency(network, drawn, network.layers)
    if named := recipe.options.layer:
        layer, reason = layer_at(network.layers, named), f"{named} was named in the request."
        return layer, score_records(scores, network.layers, layer.path), reason
    candidates = recipe.candidate_layers(network)
    finalists = shortlist(scores, candidates, recipe.num_trial_edits)
    if len(finalists) < 2:
        layer, reason = most_salient(scores, candidates)
    else:
        generator = torch.Generator().manual_seed(recipe.options.seed)
        decision = trial_edits(network, batch, finalists, recipe.margin, generator)
        layer, reason = decision.best.layer, decision.reason
    return layer, score_records(scores, network.layers, layer.path), reason
