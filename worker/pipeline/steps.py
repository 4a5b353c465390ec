"""One edit from samples to a measured delta: predicting, saliency, training, evaluation, in this order.

Knows the method and its order; reports where it stands through an `Observer`. Does not know jobs, SQL or
blobs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from salem.deltas.terms import LayerDelta, applied
from salem.errors import EditFailed
from salem.inference.predict import is_right, predict
from salem.messages import a_few, quoted
from salem.models.layers import layer_at
from salem.models.network import Network
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
from worker.dataset.counterfactuals import with_neighbors
from worker.dataset.forgetting_targets import add_forgetting_targets
from worker.evaluation.earlier_edits import notes_on_lost_edits
from worker.evaluation.metrics import evaluate
from worker.evaluation.versions import EditedModel, OverlaidModel, on_top
from worker.hypernetworks.files import TrainedEditor
from worker.recipes.base import Left
from worker.recipes.terms import train_term
from worker.selection.saliency import candidate_layers, layer_saliency, most_salient, score_records, shortlist
from worker.selection.trials import trial_edits
from worker.training.observer import Observer


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
    editor: TrainedEditor | None = None  # that made it in one pass


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
    *,
    again: bool = False,
) -> MeasuredDelta:
    """Correct a batch on top of the parent's deltas and measure the result.

    Args:
        again: a delta that was asked for before is made without some of its edits: it is what comes of the
            others, whether or not they hold.

    Raises:
        EditFailed: no edit sample is answered rightly after training; the message gives the figures.
    """
    observer.phase("predicting", 0.1)
    answers = predict(network, batch.edit_samples, parent, max_new_tokens=hyper.max_new_tokens)
    asked = [(answer.output, sample) for answer, sample in zip(answers, batch.edit_samples, strict=True)]
    made = make_delta(network, parent, batch, hyper, observer, left)
    not_given = a_few(_nothing_to_forget(asked), "answers that are to be forgotten and are not given")
    made = replace(made, warnings=(*made.warnings, *not_given))
    observer.phase("evaluating", 0.85)
    metrics = _measure(network, parent, made, batch, hyper, left or Left())
    if metrics.edit_accuracy.value == 0 and not again:
        raise _failed(made, batch.edit_samples, hyper)
    if made.editor is not None:
        notes = (*metrics.notes, *_notes_of_one_pass(made.editor, metrics, hyper))
        metrics = metrics.model_copy(update={"notes": notes})
    return MeasuredDelta(made, metrics, sum(not is_right(output, sample) for output, sample in asked))


def _failed(made: MadeDelta, edits: Sequence[Sample], hyper: Hyperparameters) -> EditFailed:
    num_edits = len(edits)
    by_values = made.editor is None and hyper.recipe is Recipe.SCOPED
    if by_values and hyper.entry_values != "trained":
        return EditFailed(
            f"None of the {num_edits} edits holds at {made.layer.path} by values that were not trained.",
            remedy="Leave out options.entry_values, so that values are trained.",
        )
    if all(edit.forgets for edit in edits):
        return EditFailed(
            f"None of the {num_edits} answers is forgotten after training at {made.layer.path}.",
            remedy="Raise max_steps, name another layer in options, or name a target that is to be given "
            "instead.",
        )
    if made.editor is None:
        usual = hyper.kl_weight is None and hyper.recipe in (Recipe.MEND, Recipe.PAPER)
        held_back = usual or (hyper.kl_weight and hyper.recipe is not Recipe.RIDGE)
        pull = "lower kl_weight, " if held_back else ""
        return EditFailed(
            f"None of the {num_edits} edits holds after training at {made.layer.path}.",
            remedy=f"Raise max_steps, {pull}or name another layer in options.",
        )
    return EditFailed(
        f"None of the {num_edits} edits holds after the one pass of {hyper.editor} at {made.layer.path}; "
        "nothing was trained.",
        remedy="Leave out options.editor to train for this job, or train an editor on edits more like these.",
    )


def _notes_of_one_pass(editor: TrainedEditor, metrics: Metrics, hyper: Hyperparameters) -> Iterator[str]:
    """What the one pass left undone, and why it may have."""
    edits = [outcome for outcome in metrics.outcomes if outcome.kind == "edit"]
    open_edits = [outcome for outcome in edits if not outcome.correct]
    if open_edits:
        yield (
            f"{len(open_edits)} of {len(edits)} edits do not hold after the one pass of {hyper.editor}, the "
            f"first being {quoted(open_edits[0].input)}; nothing was trained: leave out options.editor to "
            "train for this job"
        )
    if len(edits) > editor.num_together:
        yield (
            f"{hyper.editor} has learned to apply {editor.num_together} edits at once, this job has "
            f"{len(edits)}: make several jobs, or train an editor with a higher num_together"
        )


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
    plain = [delta for delta in parent if not delta.scoped]
    with applied(network.model, plain):
        batch = add_forgetting_targets(network, batch)
    notes: tuple[str, ...] = ()
    editor = left.editor if left else None
    if editor is None:
        batch, notes = with_neighbors(network, plain, batch, hyper)
        observer.phase("saliency", 0.15)
        with applied(network.model, plain):
            layer, scores, reason = _choose_layer(network, batch, hyper)
        observer.saliency(scores)
        observer.phase("training", 0.2)
    else:
        layer, scores, reason = editor.layer, (), f"{editor.layer.path} is the layer of {hyper.editor}."
        observer.phase("one pass", 0.2)
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
        (*notes, *trained.warnings),
        trained.entries,
        trained.metric_is_new,
        editor,
    )


def _nothing_to_forget(asked: Sequence[tuple[str, Sample]]) -> Iterator[str]:
    """A note for every edit whose answer is not given anyway: its outcome says little."""
    for output, sample in asked:
        if sample.forgets and is_right(output, sample):
            yield (
                f"{quoted(sample.input)} was not answered with {quoted(sample.answer)}, which it is to "
                f"forget, but with {quoted(output)}; forget that if it is what you mean"
            )


def _choose_layer(
    network: Network, batch: EditBatch, hyper: Hyperparameters
) -> tuple[Layer, tuple[LayerScore, ...], str]:
    """The layer to edit, every layer's score, and why this one, in a sentence.

    The layer that the client names; else, of the most salient, the one at which a trial edit does best.
    """
    scores = layer_saliency(network, batch.corrections, network.layers)
    candidates = candidate_layers(network, hyper)
    few = shortlist(scores, candidates, hyper.trial_edits)
    if hyper.layer:
        layer, reason = layer_at(network.layers, hyper.layer), f"{hyper.layer} was named in the request."
    elif hyper.recipe is Recipe.PAPER or len(few) < 2:
        layer, reason = most_salient(scores, candidates)
    else:
        decision = trial_edits(network, batch, few, hyper, torch.Generator().manual_seed(hyper.seed))
        layer, reason = decision.best.layer, decision.reason
    return layer, score_records(scores, network.layers, layer.path), reason


def _measure(
    network: Network,
    parent: Sequence[LayerDelta],
    made: MadeDelta,
    batch: EditBatch,
    hyper: Hyperparameters,
    left: Left,
) -> Metrics:
    """The version against its parent; a base is taken at its registered word where only scopes can differ."""
    before = EditedModel(network, parent, hyper.max_new_tokens)
    # As it is served: on a GPU a plain change takes the type of the model, which may be a narrow one.
    after = on_top(before, made.delta.to(network.device, network.model.dtype), left.cache)
    if not parent and isinstance(after, OverlaidModel):
        before.known.update(left.answers)
    undone = notes_on_lost_edits(network, before, after, left.edits, batch)
    notes = (*made.warnings, *_unheld(batch), *undone)
    return evaluate(batch, before, after, generates=network.task.generates, notes=notes)


def _unheld(batch: EditBatch) -> Iterator[str]:
    if not batch.pass_samples:
        yield "nothing held the other answers in place: there were no pass samples to train on"
