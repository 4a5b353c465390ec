"""One editor from a corpus to measured tensors: prediction, saliency, training, evaluation, in this order.

Reports its progress through an `Observer`. Must not know jobs, SQL, blobs, or what an editor is used for.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from salem.deltas.terms import LayerDelta
from salem.inference.predict import predict, same_answer
from salem.models.layers import layer_at
from salem.models.network import Network
from salem.records import Edit, EditBatch, EditorMetrics, EditorOptions, Layer, LayerScore, Proportion, Sample
from worker.activations.cache import SampleCache
from worker.activations.trunk_sets import prepare_with_answers
from worker.hypernetworks.corpus import Corpus, split_corpus
from worker.hypernetworks.files import TrainedEditor
from worker.hypernetworks.mend import MendEditor
from worker.hypernetworks.meta_training import (
    MetaTrainingOptions,
    MetaTrainingSet,
    initial_editors,
    meta_batches,
    train_editors,
)
from worker.hypernetworks.one_pass import update_of
from worker.numerics.intervals import paired_drop, proportion
from worker.selection.candidates import middle_layers
from worker.selection.saliency import drawn_samples, layer_saliency, most_salient, score_records
from worker.training.loop import CHUNK
from worker.training.observer import Observer

REPORT_EVERY = 10  # steps


@dataclass(frozen=True)
class MeasuredEditor:
    """An editor with its metrics and saliency scores."""

    trained: TrainedEditor
    metrics: EditorMetrics
    saliency: tuple[LayerScore, ...]
    reason: str  # why this layer


def split(network: Network, edits: Sequence[Edit], batch: EditBatch, options: EditorOptions) -> Corpus:
    """Get the base's answer to every edit of the corpus, and hold some out.

    Raises:
        EditFailed: the base already gives the target of too many edits.
    """
    correct = _correct(network, [edit.sample for edit in edits], (), options)
    return split_corpus(edits, [not hit for hit in correct], batch, options.seed)


def make_editor(
    network: Network,
    corpus: Corpus,
    options: EditorOptions,
    observer: Observer,
    cache: SampleCache | None = None,
) -> MeasuredEditor:
    """Choose the layer, train the editor, and measure it on held-out edits."""
    observer.phase("saliency", 0.1)
    layer, scores, reason = _choose_layer(network, corpus, options)
    observer.saliency(scores)
    observer.phase("training", 0.2)
    start, editor = _train(network, layer, corpus, options, observer, cache)
    observer.phase("evaluating", 0.8)
    metrics = _measure(network, layer, start, editor, corpus, options)
    return MeasuredEditor(TrainedEditor(editor, layer, options.num_together), metrics, scores, reason)


def _choose_layer(
    network: Network, corpus: Corpus, options: EditorOptions
) -> tuple[Layer, tuple[LayerScore, ...], str]:
    """The layer that the request names, or else the most salient layer over the corpus."""
    samples = drawn_samples([edit.sample for edit in corpus.training], options)
    scores = layer_saliency(network, samples, network.layers)
    if options.layer:
        layer, reason = layer_at(network.layers, options.layer), f"{options.layer} was named in the request."
    else:
        candidates = network.layers if options.candidates == "all" else middle_layers(network.layers)
        layer, reason = most_salient(scores, candidates)
    return layer, score_records(scores, network.layers, layer.path), reason


def _train(
    network: Network,
    layer: Layer,
    corpus: Corpus,
    options: EditorOptions,
    observer: Observer,
    cache: SampleCache | None,
) -> tuple[MendEditor, MendEditor]:
    """The editor before training and after it."""
    keep, _ = prepare_with_answers(network, corpus.pass_samples, layer, chunk_size=CHUNK, cache=cache)
    batches = meta_batches(network, corpus.training, [layer], random.Random(options.seed))
    data = MetaTrainingSet([layer], batches, keep.chunks)
    training = MetaTrainingOptions(
        rank=options.editor_rank,
        num_together=options.num_together,
        num_steps=options.num_steps,
        learning_rate=options.learning_rate,
        kl_weight=options.kl_weight,
    )

    def report(step: int, loss: float) -> None:
        if step % REPORT_EVERY == 0 or step == options.num_steps:
            observer.figures(0.2 + 0.6 * step / options.num_steps, {"loss": loss})

    start = initial_editors(network, data, training, _generator(options))
    made = train_editors(network, data, training, _generator(options), report)
    return start[layer.path], made[layer.path]


def _generator(options: EditorOptions) -> torch.Generator:
    return torch.Generator().manual_seed(options.seed)


def _measure(
    network: Network,
    layer: Layer,
    start: MendEditor,
    editor: MendEditor,
    corpus: Corpus,
    options: EditorOptions,
) -> EditorMetrics:
    """Apply both editors to the held-out edits."""
    after, before = (
        _Correctness.with_editor(network, layer, one, corpus, options) for one in (editor, start)
    )
    return EditorMetrics(
        edit_accuracy=_share(after.edits),
        generalization=proportion(after.paraphrases),
        drawdown=paired_drop(after.kept_before, after.kept),
        untrained_accuracy=_share(before.edits),
        untrained_drawdown=paired_drop(before.kept_before, before.kept),
        notes=tuple(_notes(corpus, after, before)),
    )


@dataclass(frozen=True)
class _Correctness:
    """Which samples are answered correctly with an editor's updates."""

    edits: list[bool]
    paraphrases: list[bool]
    kept_before: list[bool]
    kept: list[bool]

    @classmethod
    def with_editor(
        cls, network: Network, layer: Layer, editor: MendEditor, corpus: Corpus, options: EditorOptions
    ) -> _Correctness:
        """Apply the held-out edits in groups of the size that the editor was trained for.

        Every held-out pass sample is tested once, with the update of one of the groups in turn.
        """
        found = cls([], [], [], [])
        size = options.num_together
        groups = [corpus.held_out[i : i + size] for i in range(0, len(corpus.held_out), size)]
        for index, group in enumerate(groups):
            own = [edit.sample for edit in group]
            term = update_of(network, layer, editor, own, torch.ones(len(own)))
            delta = [LayerDelta(layer.path, (term,))]
            paraphrases = [sample for edit in group for sample in edit.paraphrase_samples]
            kept = corpus.held_out_pass_samples[index :: len(groups)]
            found.edits.extend(_correct(network, own, delta, options))
            found.paraphrases.extend(_correct(network, paraphrases, delta, options))
            found.kept_before.extend(_correct(network, kept, (), options))
            found.kept.extend(_correct(network, kept, delta, options))
        return found

    @property
    def score(self) -> float:
        """The share of edits that hold minus the share of pass samples that are lost."""
        lost = paired_drop(self.kept_before, self.kept)
        return sum(self.edits) / len(self.edits) - (lost.value if lost else 0.0)


def _share(hits: Sequence[bool]) -> Proportion:
    found = proportion(hits)
    assert found is not None, "a corpus holds out at least one edit"
    return found


def _notes(corpus: Corpus, after: _Correctness, before: _Correctness) -> list[str]:
    notes: list[str] = []
    if corpus.num_right:
        notes.append(
            f"the model already gives the target of {corpus.num_right} edits of the corpus: they were used "
            "for training, and none of them is a held-out edit"
        )
    if after.score <= before.score:
        notes.append(
            "the trained editor is not better than a plain gradient step (held-out edits that hold minus "
            "pass samples that are lost): send a larger corpus, or raise num_steps"
        )
    if not any(edit.paraphrases for edit in corpus.held_out):
        notes.append("generalization was not measured: no held-out edit has a paraphrase")
    if not corpus.held_out_pass_samples:
        notes.append("drawdown was not measured: there are no held-out pass samples")
    if not corpus.pass_samples:
        notes.append("no pass samples: other answers were not protected in training")
    return notes


def _correct(
    network: Network, samples: Sequence[Sample], deltas: Sequence[LayerDelta], options: EditorOptions
) -> list[bool]:
    """Whether each sample is answered with its target."""
    if not samples:
        return []
    answers = predict(network, samples, deltas, max_new_tokens=options.max_new_tokens)
    return [same_answer(a.output, s.answer) for a, s in zip(answers, samples, strict=True)]
