"""One edit from samples to a measured delta: classing, saliency, training, evaluation, in this order.

Knows the method and its order; reports where it stands through an `Observer`. Does not know jobs, SQL or
blobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from salem.answers import predict, same_answer
from salem.deltas import LayerDelta
from salem.errors import EditFailed
from salem.hosting import Network
from salem.layers import layer_at
from salem.records import (
    EditBatch,
    Hyperparameters,
    Layer,
    LayerScore,
    Metrics,
    Prediction,
    Recipe,
    Sample,
    TextInput,
)
from worker.evaluation import Answerer, evaluate
from worker.recipes import train_term
from worker.saliency import choose_layer, layer_saliency, middle_layers, profile


class Observer(Protocol):
    """Who wants to know how an edit goes."""

    def phase(self, name: str, progress: float) -> None: ...

    def saliency(self, scores: Sequence[LayerScore]) -> None: ...

    def figures(self, progress: float, figures: dict[str, float]) -> None: ...


@dataclass(frozen=True)
class MeasuredDelta:
    """A delta with what is known of it."""

    delta: LayerDelta
    layer: Layer
    saliency: tuple[LayerScore, ...]
    metrics: Metrics
    num_failing: int  # edits that the parent answered wrongly


def make_edit(
    network: Network,
    parent: Sequence[LayerDelta],
    batch: EditBatch,
    hyper: Hyperparameters,
    observer: Observer,
) -> MeasuredDelta:
    """Correct a batch on top of the parent's deltas and measure the result.

    Raises:
        EditFailed: no edit sample is answered rightly after training; the message gives the figures.
    """
    observer.phase("classing", 0.1)
    corrections = [*batch.edit_samples, *(sample for _, sample in batch.adapt_samples)]
    wrong = [not hit for hit in _hits(network, corrections, parent, hyper)]
    observer.phase("saliency", 0.15)
    layer, scores = _choose_layer(network, corrections, hyper)
    observer.saliency(scores)
    observer.phase("training", 0.2)
    trained = train_term(
        network,
        parent,
        batch,
        layer,
        hyper,
        lambda share, figures: observer.figures(0.3 + 0.5 * share, figures),
    )
    delta = LayerDelta(layer.path, (trained.term,))
    observer.phase("evaluating", 0.85)
    metrics = _measure(network, parent, delta, batch, hyper, trained.warnings)
    if metrics.edit_accuracy.value == 0:
        raise EditFailed(
            f"None of the {len(batch.edit_samples)} edits holds after training at {layer.path}.",
            remedy="Raise max_steps, lower kl_weight, or name another layer in options.",
        )
    return MeasuredDelta(delta, layer, scores, metrics, sum(wrong[: len(batch.edit_samples)]))


def _hits(
    network: Network, samples: Sequence[Sample], deltas: Sequence[LayerDelta], hyper: Hyperparameters
) -> list[bool]:
    answers = predict(network, samples, deltas, max_new_tokens=hyper.max_new_tokens)
    return [same_answer(a.output, s.target) for a, s in zip(answers, samples, strict=True)]


def _choose_layer(
    network: Network, corrections: Sequence[Sample], hyper: Hyperparameters
) -> tuple[Layer, tuple[LayerScore, ...]]:
    """The layer that the client names, else the one that saliency leads to; and every layer's score."""
    scores = layer_saliency(network, corrections, network.layers, hyper.gradient_batch)
    bare = hyper.recipe is Recipe.PAPER or hyper.candidates == "all"
    candidates = network.layers if bare else middle_layers(network.layers)
    chosen = hyper.layer or choose_layer(scores, candidates).path
    layer = layer_at(network.layers, chosen)
    return layer, profile(scores, network.layers, layer.path)


def _measure(
    network: Network,
    parent: Sequence[LayerDelta],
    delta: LayerDelta,
    batch: EditBatch,
    hyper: Hyperparameters,
    warnings: Sequence[str],
) -> Metrics:
    def answerer(deltas: Sequence[LayerDelta]) -> Answerer:
        def answer(inputs: Sequence[TextInput]) -> list[Prediction]:
            return predict(network, inputs, deltas, max_new_tokens=hyper.max_new_tokens)

        return answer

    return evaluate(
        batch,
        answerer(parent),
        answerer([*parent, delta]),
        generates=network.task.generates,
        notes=warnings,
    )
