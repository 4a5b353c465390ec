"""An editor from a corpus: what is held out, what training gains, and its notes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
import torch
from editor_corpora import LAYER, NUM_EDITS, QUICK, corpus, kept
from tiny_models import tiny_network

from salem.errors import EditFailed
from salem.records import Edit, EditBatch, EditorOptions, LayerScore
from worker.dataset.split import build_edit_batch
from worker.hypernetworks.corpus import MIN_WRONG, Corpus, split_corpus
from worker.hypernetworks.make_editor import MeasuredEditor, make_editor, split


class Seen:
    """An observer that records everything."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.progress: list[float] = []
        self.losses: list[float] = []
        self.scores: tuple[LayerScore, ...] = ()

    def phase(self, name: str, progress: float) -> None:
        self.phases.append(name)
        self.progress.append(progress)

    def saliency(self, scores: Sequence[LayerScore]) -> None:
        self.scores = tuple(scores)

    def figures(self, progress: float, figures: dict[str, float]) -> None:
        self.progress.append(progress)
        self.losses.append(figures["loss"])


def pools(edits: Sequence[Edit], *, keep: bool = True) -> EditBatch:
    samples = kept() if keep else ()
    return build_edit_batch(edits, [], samples, max_pass_samples=100, max_held_out=100, seed=0)


def taught(
    edits: Sequence[Edit], options: EditorOptions, *, keep: bool = True
) -> tuple[MeasuredEditor, Seen]:
    network, seen = tiny_network("bert"), Seen()
    parts = split(network, edits, pools(edits, keep=keep), options)
    return make_editor(network, parts, options, seen), seen


@cache
def made() -> tuple[MeasuredEditor, Seen]:
    return taught(corpus(num_right=3), QUICK)


def test_an_editor_trained_ahead_beats_an_untrained_one_on_edits_that_it_never_saw() -> None:
    metrics = made()[0].metrics
    assert metrics.edit_accuracy.count == metrics.untrained_accuracy.count == (NUM_EDITS - 3) // 4
    assert metrics.edit_accuracy.value > metrics.untrained_accuracy.value
    assert metrics.drawdown and metrics.untrained_drawdown
    assert (
        metrics.drawdown.count
        == metrics.untrained_drawdown.count
        == len(pools(corpus()).held_out_pass_samples)
    )
    assert metrics.generalization and metrics.generalization.count == metrics.edit_accuracy.count


def test_making_an_editor_is_reported_from_phase_to_phase() -> None:
    measured, seen = made()
    assert seen.phases == ["saliency", "training", "evaluating"]
    assert seen.progress == sorted(seen.progress) and len(seen.losses) == QUICK.num_steps // 10
    assert seen.losses[-1] < seen.losses[0]
    assert [score.layer for score in seen.scores if score.chosen] == [LAYER]
    assert measured.saliency == seen.scores and measured.reason == f"{LAYER} was named in the request."


def test_notes_state_what_the_metrics_do_not_show() -> None:
    (note,) = made()[0].metrics.notes
    assert note.startswith("the model already gives the target of 3 edits of the corpus")
    bare = [edit.model_copy(update={"paraphrases": ()}) for edit in corpus()]
    slow = QUICK.model_copy(update={"num_steps": 1, "learning_rate": 1e-9})
    metrics = taught(bare, slow, keep=False)[0].metrics
    assert metrics.edit_accuracy == metrics.untrained_accuracy
    assert metrics.generalization is None and metrics.drawdown is None
    words = (
        "no more",
        "plain gradient step",
        "no held-out edit",
        "no held-out pass samples",
        "no pass samples",
    )
    assert [any(word in note for note in metrics.notes) for word in words[1:]] == [True] * 4


def test_the_layer_is_the_most_salient_of_the_middle_ones_or_of_all() -> None:
    quick = QUICK.model_copy(update={"layer": None, "num_steps": 1})
    for candidates, num in (("middle", 1), ("all", 3)):
        options = quick.model_copy(update={"candidates": candidates})
        measured, seen = taught(corpus(), options)
        among = [score for score in seen.scores if candidates == "all" or score.block == 1]
        best = max(among, key=lambda score: score.score)
        assert len(among) == num and measured.trained.layer.path == best.layer and best.chosen


def test_the_same_corpus_options_and_seed_give_the_same_editor() -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        options = QUICK.model_copy(update={"seed": seed, "num_steps": 5})
        return taught(corpus(), options)[0].trained.editor.state_dict()

    first, again, other = state(1), state(1), state(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.0.down"], other["blocks.0.down"])


def parts_of(edits: Sequence[Edit], wrong: Sequence[bool], seed: int = 0) -> Corpus:
    return split_corpus(edits, wrong, pools(edits), seed)


def test_held_out_edits_are_answered_wrongly_and_not_trained_on() -> None:
    edits, wrong = corpus(), [place >= 10 for place in range(NUM_EDITS)]
    found = parts_of(edits, wrong)
    assert len(found.held_out) == (NUM_EDITS - 10) // 4 and found.num_right == 10
    assert not set(found.held_out) & set(edits[:10])
    assert sorted([*found.training, *found.held_out], key=edits.index) == list(edits)
    assert found == parts_of(edits, wrong) != parts_of(edits, wrong, seed=1)
    texts = {sample.content_hash for edit in edits for sample in (edit.sample, *edit.paraphrase_samples)}
    assert not texts & {sample.content_hash for sample in (*found.pass_samples, *found.held_out_pass_samples)}


@pytest.mark.parametrize("num_wrong", [0, MIN_WRONG - 1])
def test_a_corpus_with_too_few_wrong_answers_is_refused(num_wrong: int) -> None:
    edits = corpus()
    with pytest.raises(EditFailed) as caught:
        parts_of(edits, [place < num_wrong for place in range(NUM_EDITS)])
    assert f"{NUM_EDITS - num_wrong} of the corpus' {NUM_EDITS} edits" in caught.value.message
    assert f"such as /edits/{num_wrong})" in caught.value.message
    assert caught.value.remedy and "differ from the model's answers" in caught.value.remedy
