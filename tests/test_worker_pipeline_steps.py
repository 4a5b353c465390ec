"""One edit from samples to a measured delta: messages, notes, and the choice of the layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from recipe_cases import edit_context, made, measured, recipe
from test_salem_inference_predict import with_changed_weight
from test_worker_recipes_terms import Case, case

from benchmarks.baselines.salem_recipes import SilentObserver
from salem.deltas.chain import joined
from salem.deltas.terms import Dense, LayerDelta
from salem.errors import EditFailed
from salem.inference.predict import Answer, predict
from salem.models.network import Network
from salem.records import LayerScore, Sample
from worker.evaluation import versions
from worker.pipeline import measure
from worker.pipeline import predict as predict_step
from worker.pipeline.layer import choose_layer
from worker.recipes.scoped import recipe as scoped_recipe

IDLE = {"max_steps": 1, "entry_rank": 0, "trial_edits": 0, "max_new_tokens": 32}


def forgetting(of: Case) -> Case:
    """The same inputs, each with its current answer to forget."""
    edits = of.batch.edit_samples[:2]
    answers = predict(of.network, edits, max_new_tokens=32)
    lost = tuple(Sample(input=e.input, forget=a.output) for e, a in zip(edits, answers, strict=True))
    return Case(of.network, of.batch.model_copy(update={"edit_samples": lost, "adapt_samples": ()}))


@pytest.mark.parametrize(
    ("forgets", "message", "remedy"),
    [
        (False, "None of the 3 edits holds", "kl_weight"),
        (True, "None of the 2 answers is forgotten", "give a target to answer instead"),
    ],
)
def test_if_nothing_holds_the_remedy_helps(forgets: bool, message: str, remedy: str) -> None:
    of = forgetting(case("bert")) if forgets else case("bert")
    idle = edit_context(of.network, of.batch, recipe("scoped", **IDLE, learning_rate=1e-12))
    with pytest.raises(EditFailed) as failed:
        measured(idle)
    assert failed.value.remedy is not None and "Raise options.max_steps" in failed.value.remedy
    assert message in failed.value.message and remedy in failed.value.remedy
    assert ("kl_weight" in failed.value.remedy) is not forgets
    again = measured(replace(idle, may_fail=True))
    assert again.metrics.edit_accuracy.value == 0, "remaining edits of an older delta do not have to hold"


def test_a_job_without_pass_samples_notes_that_other_answers_were_not_protected() -> None:
    of = case("bert")
    bare = of.batch.model_copy(update={"pass_samples": ()})
    quick = recipe("scoped", trial_edits=0)
    told = [measured(edit_context(of.network, batch, quick)).metrics.notes for batch in (bare, of.batch)]
    found = [any(note.startswith("no pass samples") for note in notes) for notes in told]
    assert found == [True, False]


class Listening(SilentObserver):
    """Keeps the scores that a job reports."""

    scores: Sequence[LayerScore] = ()

    def saliency(self, scores: Sequence[LayerScore]) -> None:
        self.scores = scores


def changed(of: Case) -> tuple[LayerDelta, Network]:
    """A plain delta that changes a lot, and the model with that change in its weight."""
    layer = of.network.layers[-1]
    noise = torch.randn(layer.d_out, layer.d_in, generator=torch.Generator().manual_seed(3))
    return LayerDelta(layer.path, (Dense(noise),)), with_changed_weight(of.network, layer, noise)


@pytest.mark.parametrize("name", ["mend", "scoped"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_the_layer_is_chosen_on_top_of_the_parents_plain_deltas(architecture: str, name: str) -> None:
    of = case(architecture)
    delta, written = changed(of)
    own = recipe(name, candidates="all", trial_edits=3, max_steps=1)
    below, beside, base = Listening(), Listening(), Listening()
    found = made(edit_context(of.network, of.batch, own, parent=(delta,), observer=below))
    expected = made(edit_context(written, of.batch, own, observer=beside))
    made(edit_context(of.network, of.batch, own, observer=base))
    assert [s.layer for s in below.scores] == [s.layer for s in beside.scores]
    scores, wanted, otherwise = ([s.score for s in each.scores] for each in (below, beside, base))
    assert scores == pytest.approx(wanted, rel=1e-3) and scores != pytest.approx(otherwise, rel=1e-1)
    assert found.layer == expected.layer and found.reason == expected.reason


def test_the_margin_is_the_one_that_the_parents_plain_deltas_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    of, attained = case("bert"), []
    own = scoped_recipe.attainable_margin

    def listening(*args: Any) -> float:
        attained.append(own(*args))
        return attained[-1]

    monkeypatch.setattr(scoped_recipe, "attainable_margin", listening)
    delta, written = changed(of)
    own_recipe = recipe("scoped", trial_edits=0, max_steps=1, margin=1e9)
    for network, parent in ((of.network, (delta,)), (written, ()), (of.network, ())):
        made(edit_context(network, of.batch, own_recipe, parent=parent))
    assert attained[0] == pytest.approx(attained[1], rel=1e-3) and attained[0] != attained[2]


def test_saliency_is_averaged_over_some_corrections_or_all() -> None:
    of = case("bert")
    every = [each.score for each in saliency_of(of, saliency_samples=100)]
    assert len(of.batch.corrections) > 2
    few = [each.score for each in saliency_of(of, saliency_samples=2)]
    assert few != every and few == [each.score for each in saliency_of(of, saliency_samples=2)]
    drawn = set()
    for seed in range(8):
        drawn.add(tuple(each.score for each in saliency_of(of, saliency_samples=2, seed=seed)))
    assert len(drawn) > 1, "the samples are drawn at random"


def saliency_of(of: Case, **options: Any) -> tuple[LayerScore, ...]:
    given = recipe("scoped", **{**IDLE, **options})
    return choose_layer(edit_context(of.network, of.batch, given)).saliency


def test_the_parent_answers_each_input_once(monkeypatch: pytest.MonkeyPatch) -> None:
    of = case("gpt2")
    asked: list[str] = []

    def counting(network: Network, inputs: Sequence[Sample], deltas: Any = (), **more: Any) -> list[Answer]:
        if not joined(deltas).num_deltas:
            asked.extend(item.content_hash for item in inputs)
        return predict(network, inputs, deltas, **more)

    for module in (predict_step, versions):
        monkeypatch.setattr(module, "predict", counting)
    done = measured(edit_context(of.network, of.batch, recipe("scoped", **IDLE), may_fail=True))
    assert {sample.content_hash for sample in of.batch.corrections} <= set(asked)
    assert len(asked) == len(set(asked)), "measuring reuses the answers"
    assert done.num_failing == sum(answer != sample.answer for sample, answer in done.edits_before)


def test_a_note_says_whether_earlier_edits_still_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    of, given = case("bert"), {}
    earlier = {"1.0": Sample(input="a", target="new")}

    def told(*arguments: object) -> list[str]:
        given["earlier"] = arguments[3]
        return ["1 of 1 earlier corrections"]

    monkeypatch.setattr(measure, "notes_on_lost_edits", told)
    start = edit_context(of.network, of.batch, recipe("scoped", trial_edits=0), earlier_edits=earlier)
    found = measured(start)
    assert given["earlier"] == earlier and "1 of 1 earlier corrections" in found.metrics.notes
