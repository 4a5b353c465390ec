"""One edit from samples to a measured delta: what is said when nothing holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from test_salem_inference_predict import with_changed_weight
from test_worker_recipes_terms import Case, case, hyper

from benchmarks.baselines.product import Quiet
from salem.deltas.terms import Dense, LayerDelta
from salem.errors import EditFailed
from salem.inference.predict import predict
from salem.models.network import Network
from salem.records import LayerScore, Recipe, Sample
from worker.pipeline import steps
from worker.pipeline.steps import make_delta, make_edit
from worker.recipes.base import Left
from worker.recipes.scoped import entries as scoped_entries

IDLE = {"max_steps": 1, "entry_rank": 0, "trial_edits": 0, "max_new_tokens": 32}


def forgetting(of: Case) -> Case:
    """The same inputs, each to lose the answer that is given."""
    edits = of.batch.edit_samples[:2]
    answers = predict(of.network, edits, max_new_tokens=32)
    lost = tuple(Sample(input=e.input, forget=a.output) for e, a in zip(edits, answers, strict=True))
    return Case(of.network, of.batch.model_copy(update={"edit_samples": lost, "adapt_samples": ()}))


@pytest.mark.parametrize(
    ("forgets", "message", "remedy"),
    [
        (False, "None of the 3 edits holds", "kl_weight"),
        (True, "None of the 2 answers is forgotten", "a target that is to be given instead"),
    ],
)
def test_where_nothing_holds_the_remedy_is_one_that_helps(forgets: bool, message: str, remedy: str) -> None:
    of = forgetting(case("bert")) if forgets else case("bert")
    idle = hyper(Recipe.SCOPED, **IDLE).model_copy(update={"learning_rate": 1e-12})
    with pytest.raises(EditFailed) as failed:
        make_edit(of.network, (), of.batch, idle, Quiet())
    assert failed.value.remedy is not None and "Raise max_steps" in failed.value.remedy
    assert message in failed.value.message and remedy in failed.value.remedy
    assert ("kl_weight" in failed.value.remedy) is not forgets
    again = make_edit(of.network, (), of.batch, idle, Quiet(), again=True)
    assert again.metrics.edit_accuracy.value == 0, "what is left of an older delta need not hold"


def test_a_job_without_pass_samples_says_that_nothing_held_other_answers() -> None:
    of = case("bert")
    bare = of.batch.model_copy(update={"pass_samples": ()})
    quick = hyper(Recipe.SCOPED, trial_edits=0)
    told = [make_edit(of.network, (), batch, quick, Quiet()).metrics.notes for batch in (bare, of.batch)]
    found = [any(note.startswith("nothing held the other answers") for note in notes) for notes in told]
    assert found == [True, False]


def test_values_that_were_not_trained_are_not_to_be_trained_longer() -> None:
    of = case("gpt2")
    untrained = hyper(Recipe.SCOPED, trial_edits=0, entry_values="closed_form")
    with pytest.raises(EditFailed, match="by values that were not trained") as failed:
        make_edit(of.network, (), of.batch, untrained, Quiet())
    assert failed.value.remedy is not None and "max_steps" not in failed.value.remedy


class Listening(Quiet):
    """Keeps the scores that a job told."""

    scores: Sequence[LayerScore] = ()

    def saliency(self, scores: Sequence[LayerScore]) -> None:
        self.scores = scores


def changed(of: Case) -> tuple[LayerDelta, Network]:
    """A plain delta that changes much, and the model with it really written into its weight."""
    layer = of.network.layers[-1]
    noise = torch.randn(layer.d_out, layer.d_in, generator=torch.Generator().manual_seed(3))
    return LayerDelta(layer.path, (Dense(noise),)), with_changed_weight(of.network, layer, noise)


@pytest.mark.parametrize("recipe", [Recipe.MEND, Recipe.SCOPED])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_the_layer_is_chosen_on_top_of_the_parents_plain_deltas(architecture: str, recipe: Recipe) -> None:
    of = case(architecture)
    delta, written = changed(of)
    options = hyper(recipe, candidates="all", trial_edits=3, max_steps=1)
    below, beside, base = Listening(), Listening(), Listening()
    made = make_delta(of.network, [delta], of.batch, options, below)
    expected = make_delta(written, [], of.batch, options, beside)
    make_delta(of.network, [], of.batch, options, base)
    assert [s.layer for s in below.scores] == [s.layer for s in beside.scores]
    found, wanted, otherwise = ([s.score for s in each.scores] for each in (below, beside, base))
    assert found == pytest.approx(wanted, rel=1e-3) and found != pytest.approx(otherwise, rel=1e-1)
    assert made.layer == expected.layer and made.reason == expected.reason


def test_the_margin_is_what_the_parents_plain_deltas_attain(monkeypatch: pytest.MonkeyPatch) -> None:
    of, attained = case("bert"), []
    own = scoped_entries.attainable_margin

    def listening(*args: Any) -> float:
        attained.append(own(*args))
        return attained[-1]

    monkeypatch.setattr(scoped_entries, "attainable_margin", listening)
    delta, written = changed(of)
    options = hyper(Recipe.SCOPED, trial_edits=0, max_steps=1, margin=1e9)
    for network, parent in ((of.network, [delta]), (written, []), (of.network, [])):
        make_delta(network, parent, of.batch, options, Quiet())
    assert attained[0] == pytest.approx(attained[1], rel=1e-3) and attained[0] != attained[2]


def test_a_note_tells_what_became_of_the_edits_that_a_job_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    of, given = case("bert"), {}
    earlier = {"1.0": Sample(input="a", target="new")}

    def told(*arguments: object) -> list[str]:
        given["earlier"] = arguments[3]
        return ["1 of 1 earlier corrections"]

    monkeypatch.setattr(steps, "notes_on_lost_edits", told)
    options = hyper(Recipe.SCOPED, trial_edits=0)
    made = make_edit(of.network, (), of.batch, options, Quiet(), Left(edits=earlier))
    assert given["earlier"] == earlier and "1 of 1 earlier corrections" in made.metrics.notes
