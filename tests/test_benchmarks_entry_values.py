"""Values of entries without training: their directions, their size, and whether edits hold with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from recipe_cases import edit_task, trained
from test_worker_recipes_terms import Case, as_delta, case, num_right

from benchmarks.entry_values import (
    SIZES,
    ClosedFormRecipe,
    EditorValuesOptions,
    EditorValuesRecipe,
    UntrainedRecipe,
    ValueDirections,
    closed_form,
    editor_direction,
    worst_margin,
)
from salem.deltas.terms import LowRank, Scoped
from worker.activations.gradients import suffix_gradients
from worker.hypernetworks.mend_learner import MendLearner, MendTraining
from worker.numerics.losses import correction_loss_per_sample
from worker.recipes.base import EditTask
from worker.recipes.scoped.draw import draw_scopes
from worker.recipes.scoped.learner import empty_entries
from worker.recipes.scoped.recipe import _num_positions
from worker.recipes.scoped.training_set import prepare_entries
from worker.training.active_corrections import answers_with_term
from worker.training.loop import Prepared, states_with_term

ARCHITECTURES = ("bert", "gpt2", "llama")


OPTIONS = EditorValuesOptions(
    metric_width=16,
    learning_rate=0.15,
    kl_weight=0.1,
    max_steps=100,
    mend=MendTraining(editor_rank=8, null_space_rank=2, learning_rate=0.15, kl_weight=0.1),
)
RECIPES = (ClosedFormRecipe, EditorValuesRecipe)


def started(of: Case) -> tuple[EditTask, Prepared, Scoped]:
    """A scoped job up to the step that finds its values."""
    layer = of.network.layers[1]
    task = edit_task(of.network, of.batch, layer)
    scoping = draw_scopes(task, OPTIONS)
    prepared = prepare_entries(task, OPTIONS, scoping).prepared
    positions = _num_positions(of.network, prepared)
    return (
        task,
        prepared,
        empty_entries(scoping.scope, len(of.batch.edit_samples), layer, positions, of.network.device),
    )


def loss(task: EditTask, prepared: Prepared, term: Scoped) -> float:
    return sum(
        float(correction_loss_per_sample(answers, chunk.before, OPTIONS.margin).double().sum())
        for chunk in prepared.corrections.chunks
        for answers in [answers_with_term(task.network, chunk, term)]
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_closed_form_is_the_negative_gradient_of_the_loss(architecture: str) -> None:
    task, prepared, start = started(case(architecture))
    found = closed_form(task, OPTIONS, prepared, start)
    assert found.shape == start.values.shape
    draw, step = torch.Generator().manual_seed(1), 1e-2
    for _ in range(3):
        way = torch.randn(start.values.shape, generator=draw)
        ends = [loss(task, prepared, replace(start, values=sign * step * way)) for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * step)
        assert -float((found * way).sum()) == pytest.approx(slope, rel=0.02, abs=0.02)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_untrained_editor_moves_against_the_gradient(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, _, start = started(case(architecture))
    two_at_a_time = OPTIONS.mend.model_copy(update={"gradient_batch": 2})
    monkeypatch.setattr(EditTask, "fit", lambda self, prepared, learner, options: learner.term())
    expected = torch.zeros_like(start.values)
    for chunk in task.prepare().corrections.chunks:
        found, starts = suffix_gradients(task.network, chunk.trunk), chunk.trunk.batch.answer_starts
        for row in range(found.v.shape[0]):
            entry = task.batch.owners[int(chunk.samples[row])]
            for column in range(found.v.shape[1]):
                place = min(max(column - int(starts[row]), 0), start.values.shape[1] - 1)
                expected[entry, place] -= found.v[row, column]
    found = editor_direction(task, two_at_a_time, start).detach()
    step = float(found.norm() / expected.norm())
    torch.testing.assert_close(found, step * expected, rtol=1e-3, atol=1e-4 * float(found.abs().max()))


def test_the_editor_is_the_best_one_seen_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's best term counts, not the state of the editor after its last step."""
    task, _, start = started(case("bert"))
    found: list[torch.Tensor] = []
    fit = EditTask.fit

    def watched(self: EditTask, prepared: Prepared, learner: MendLearner, options: MendTraining) -> LowRank:
        term = fit(self, prepared, learner, options)
        assert isinstance(term, LowRank)
        found.append(term.b)
        with torch.no_grad():
            learner.editor.log_step.fill_(50.0)
        return term

    monkeypatch.setattr(EditTask, "fit", watched)
    direction = editor_direction(task, OPTIONS.mend, start)
    assert float(direction.abs().max()) <= float(found[0].abs().sum(1).max()) * 1.01
    assert torch.isfinite(direction).all()


def test_each_entry_moves_just_far_enough() -> None:
    task, prepared, start = started(case("bert"))
    direction = closed_form(task, OPTIONS, prepared, start)
    near, far = (
        ValueDirections(start, direction, 0.1, margin).shortest(task, prepared) for margin in (0.01, 3.0)
    )
    sizes = [term.values.square().mean(-1).sqrt().amax(-1) / 0.1 for term in (near, far)]
    for found in sizes:
        assert all(min(abs(float(size) - known) for known in SIZES) < 1e-3 for size in found)
    assert (sizes[0] <= sizes[1]).all() and (sizes[0] < sizes[1]).any()
    held = states_with_term(task.network, prepared.corrections, near).min_margin > 0
    assert held.any()
    one_shorter = replace(near, values=near.values / 2)
    shorter = states_with_term(task.network, prepared.corrections, one_shorter).min_margin
    entries = torch.cat([chunk.firing.entry for chunk in prepared.corrections.chunks if chunk.firing])
    places = torch.cat([chunk.samples for chunk in prepared.corrections.chunks])
    for entry in range(len(near.values)):
        own = places[entries == entry]
        assert (shorter[own] < 0.01).any() or float(sizes[0][entry]) == pytest.approx(SIZES[0])


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_untrained_values_bring_edits_closer_to_holding(
    architecture: str, kind: type[UntrainedRecipe]
) -> None:
    task, prepared, start = started(case(architecture))
    direction = kind(OPTIONS).direction(task, OPTIONS, prepared, start)
    term = ValueDirections(start, direction, 0.5, OPTIONS.margin).shortest(task, prepared)
    before, after = (
        states_with_term(task.network, prepared.corrections, each).min_margin for each in (start, term)
    )
    assert after.mean() > before.mean()


@pytest.mark.parametrize("kind", RECIPES)
def test_a_job_can_use_values_that_were_not_trained(kind: type[UntrainedRecipe]) -> None:
    of = case("bert")
    options = OPTIONS.model_copy(update={"max_steps": 20})
    found, again = (trained(of.network, of.batch, of.network.layers[1], kind(options)) for _ in range(2))
    assert isinstance(found.term, Scoped) and isinstance(again.term, Scoped)
    assert torch.equal(found.term.values, again.term.values)
    assert not found.term.down.shape[1], "there is only a value"
    assert num_right(of, of.batch.edit_samples, (as_delta(of, found),)) == len(of.batch.edit_samples)


def test_without_a_count_of_own_corrections_all_margins_count() -> None:
    task, prepared, start = started(case("bert"))
    margins = worst_margin(task, replace(prepared, num_own_corrections=None), start)
    assert margins.isfinite().all()
    assert (margins <= worst_margin(task, prepared, start)).all()


def test_a_failed_edit_without_training_is_not_advised_to_train_longer() -> None:
    of = case("bert")
    failure = ClosedFormRecipe(OPTIONS).failure(of.network.layers[0], of.batch.edit_samples)
    assert "untrained values" in failure.message and failure.remedy is None
