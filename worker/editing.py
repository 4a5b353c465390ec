"""One edit from samples to a measured delta: classing, saliency, training, evaluation, in this order.

Knows the method and its order; reports where it stands through an `Observer`. Does not know jobs, SQL or
blobs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from salem.answers import is_right, predict
from salem.deltas import LayerDelta, applied
from salem.errors import EditFailed
from salem.hosting import Network
from salem.layers import layer_at
from salem.records import (
    EditBatch,
    Entry,
    Hyperparameters,
    Layer,
    LayerScore,
    Metrics,
    Recipe,
    Sample,
)
from worker.diversion import divert
from worker.evaluation import evaluate
from worker.recipes import Left, train_term
from worker.saliency import candidate_layers, choose_layer, layer_saliency, profile, shortlist
from worker.subjects import Version
from worker.trials import trial_edits


class Observer(Protocol):
    """Who wants to know how an edit goes."""

    def phase(self, name: str, progress: float) -> None: ...

    def saliency(self, scores: Sequence[LayerScore]) -> None: ...

    def figures(self, progress: float, figures: dict[str, float]) -> None: ...


@dataclass(frozen=True)
class MadeDelta:
    """A delta, and how it came about."""

    delta: LayerDelta
    layer: Layer
    saliency: tuple[LayerScore, ...]
    reason: str  # why this layer
    warnings: tuple[str, ...] = ()
    entries: tuple[Entry, ...] = ()  # of a scoped delta, one per edit
    metric_is_new: bool = False  # whether the delta's metric was trained for it, to be stored for the next


@dataclass(frozen=True)
class MeasuredDelta:
    """A delta with what is known of it."""

    made: MadeDelta
    metrics: Metrics
    num_failing: int  # edits that the parent answered wrongly


def make_edit(
    network: Network,
    parent: Sequence[LayerDelta],
    batch: EditBatch,
    hyper: Hyperparameters,
    observer: Observer,
    left: Left | None = None,
) -> MeasuredDelta:
    """Correct a batch on top of the parent's deltas and measure the result.

    Raises:
        EditFailed: no edit sample is answered rightly after training; the message gives the figures.
    """
    observer.phase("classing", 0.1)
    answers = predict(network, batch.edit_samples, parent, max_new_tokens=hyper.max_new_tokens)
    asked = [(answer.output, sample) for answer, sample in zip(answers, batch.edit_samples, strict=True)]
    made = make_delta(network, parent, batch, hyper, observer, left)
    made = replace(made, warnings=(*made.warnings, *_nothing_to_forget(asked)))
    observer.phase("evaluating", 0.85)
    metrics = _measure(network, parent, made, batch, hyper)
    if metrics.edit_accuracy.value == 0:
        raise EditFailed(
            f"None of the {len(batch.edit_samples)} edits holds after training at {made.layer.path}.",
            remedy="Raise max_steps, lower kl_weight, or name another layer in options.",
        )
    return MeasuredDelta(made, metrics, sum(not is_right(output, sample) for output, sample in asked))


def make_delta(
    network: Network,
    parent: Sequence[LayerDelta],
    batch: EditBatch,
    hyper: Hyperparameters,
    observer: Observer,
    left: Left | None = None,
) -> MadeDelta:
    """Choose the layer and train the delta, without measuring what came of it.

    Args:
        left: what earlier jobs of the hosted model left.
    """
    observer.phase("saliency", 0.15)
    with applied(network.model, [delta for delta in parent if not delta.scoped]):
        batch = divert(network, batch)
    layer, scores, reason = _choose_layer(network, batch, hyper)
    observer.saliency(scores)
    observer.phase("training", 0.2)
    trained = train_term(
        network,
        parent,
        batch,
        layer,
        hyper,
        lambda share, figures: observer.figures(0.3 + 0.5 * share, figures),
        left,
    )
    return MadeDelta(
        LayerDelta(layer.path, (trained.term,)),
        layer,
        scores,
        reason,
        trained.warnings,
        trained.entries,
        trained.metric_is_new,
    )


def _nothing_to_forget(asked: Sequence[tuple[str, Sample]]) -> Iterator[str]:
    """A note for every edit whose answer is not given anyway: its outcome says little."""
    for output, sample in asked:
        if sample.forgets and is_right(output, sample):
            yield (
                f'"{sample.input[:80]}" was not answered with "{sample.answer[:80]}", which it is to forget, '
                f'but with "{output[:80]}"; forget that if it is what you mean'
            )


def _choose_layer(
    network: Network, batch: EditBatch, hyper: Hyperparameters
) -> tuple[Layer, tuple[LayerScore, ...], str]:
    """The layer to edit, every layer's score, and why this one, in a sentence.

    The layer that the client names; else, of the most salient, the one at which a trial edit does best.
    """
    scores = layer_saliency(network, batch.corrections, network.layers, hyper.gradient_batch)
    candidates = candidate_layers(network, hyper)
    few = shortlist(scores, candidates, hyper.trial_edits)
    if hyper.layer:
        layer, reason = layer_at(network.layers, hyper.layer), f"{hyper.layer} was named in the request."
    elif hyper.recipe is Recipe.PAPER or len(few) < 2:
        layer = choose_layer(scores, candidates)
        reason = (
            f"{layer.path} has the highest mean absolute gradient of {len(candidates)} candidates."
            if len(candidates) > 1
            else f"{layer.path} is the only candidate: the middle of a stack of few blocks."
        )
    else:
        decision = trial_edits(network, batch, few, hyper, torch.Generator().manual_seed(hyper.seed))
        layer, reason = decision.best.layer, decision.reason
    return layer, profile(scores, network.layers, layer.path), reason


def _measure(
    network: Network,
    parent: Sequence[LayerDelta],
    made: MadeDelta,
    batch: EditBatch,
    hyper: Hyperparameters,
) -> Metrics:
    longest = hyper.max_new_tokens
    return evaluate(
        batch,
        Version(network, parent, longest),
        Version(network, [*parent, made.delta], longest),
        generates=network.task.generates,
        notes=made.warnings,
    )
