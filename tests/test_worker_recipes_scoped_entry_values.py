"""Values of entries without training: their directions, how far they go, and that edits hold by them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_worker_recipes_terms import Case, as_delta, case, hyper, num_right, train

from salem.deltas.terms import LowRank, Scoped
from salem.records import Recipe
from worker.activations.gradients import suffix_gradients
from worker.hypernetworks.learners import MendLearner, empty_entries
from worker.numerics.losses import correction_loss_per_sample
from worker.recipes.base import Left, Work
from worker.recipes.scoped.calibration import draw_scopes
from worker.recipes.scoped.entries import _num_positions, _prepare_scoped
from worker.recipes.scoped.entry_values import DIRECTIONS, SIZES, along, closed_form, editor_direction
from worker.training.active_corrections import answers_with_term
from worker.training.loop import Prepared, states_with_term

ARCHITECTURES = ("bert", "gpt2", "llama")


def started(of: Case) -> tuple[Work, Prepared, Scoped]:
    """A scoped job up to where its values are found."""
    options, generator = hyper(Recipe.SCOPED), torch.Generator().manual_seed(0)
    layer = of.network.layers[1]
    work = Work(of.network, (), Left(), of.batch, layer, options, generator, lambda share, figures: None)
    scoping = draw_scopes(of.network, (), of.batch, layer, options, generator, None)
    prepared, _ = _prepare_scoped(work, scoping)
    positions = _num_positions(of.network, prepared)
    return work, prepared, empty_entries(scoping.scope, len(of.batch.edit_samples), layer, positions)


def loss(work: Work, prepared: Prepared, term: Scoped) -> float:
    return sum(
        float(correction_loss_per_sample(answers, chunk.before, work.hyper.margin).double().sum())
        for chunk in prepared.corrections.chunks
        for answers in [answers_with_term(work.network, chunk, term)]
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_closed_form_is_minus_the_slope_of_the_loss(architecture: str) -> None:
    work, prepared, start = started(case(architecture))
    found = closed_form(work, prepared, start)
    assert found.shape == start.values.shape
    draw, step = torch.Generator().manual_seed(1), 1e-2
    for _ in range(3):
        way = torch.randn(start.values.shape, generator=draw)
        ends = [loss(work, prepared, replace(start, values=sign * step * way)) for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * step)
        assert -float((found * way).sum()) == pytest.approx(slope, rel=0.02, abs=0.02)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_editor_that_has_learned_nothing_moves_against_the_gradient(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, prepared, start = started(case(architecture))
    work = replace(work, hyper=work.hyper.model_copy(update={"gradient_batch": 2}))
    monkeypatch.setattr(Work, "fit", lambda self, prepared, learner: learner.term())
    expected = torch.zeros_like(start.values)
    for chunk in work.prepare().corrections.chunks:
        found, starts = suffix_gradients(work.network, chunk.trunk), chunk.trunk.batch.answer_starts
        for row in range(found.v.shape[0]):
            entry = work.batch.owners[int(chunk.samples[row])]
            for column in range(found.v.shape[1]):
                place = min(max(column - int(starts[row]), 0), start.values.shape[1] - 1)
                expected[entry, place] -= found.v[row, column]
    found = editor_direction(work, prepared, start).detach()
    step = float(found.norm() / expected.norm())
    torch.testing.assert_close(found, step * expected, rtol=1e-3, atol=1e-4 * float(found.abs().max()))


def test_the_editor_is_the_best_that_training_came_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is the term that the loop gives, not where its last step has left the editor."""
    work, prepared, start = started(case("bert"))
    found: list[torch.Tensor] = []
    fit = Work.fit

    def watched(self: Work, prepared: Prepared, learner: MendLearner) -> LowRank:
        term = fit(self, prepared, learner)
        assert isinstance(term, LowRank)
        found.append(term.b)
        with torch.no_grad():
            learner.editor.log_step.fill_(50.0)
        return term

    monkeypatch.setattr(Work, "fit", watched)
    direction = editor_direction(work, prepared, start)
    assert float(direction.abs().max()) <= float(found[0].abs().sum(1).max()) * 1.01
    assert torch.isfinite(direction).all()


def test_each_entry_goes_as_far_as_it_must_and_no_farther() -> None:
    work, prepared, start = started(case("bert"))
    direction = closed_form(work, prepared, start)
    near, far = (along(work.network, prepared, start, direction, 0.1, margin) for margin in (0.01, 3.0))
    sizes = [term.values.square().mean(-1).sqrt().amax(-1) / 0.1 for term in (near, far)]
    for found in sizes:
        assert all(min(abs(float(size) - known) for known in SIZES) < 1e-3 for size in found)
    assert (sizes[0] <= sizes[1]).all() and (sizes[0] < sizes[1]).any()
    held = states_with_term(work.network, prepared.corrections, near).min_margin > 0
    assert held.any()
    one_shorter = replace(near, values=near.values / 2)
    shorter = states_with_term(work.network, prepared.corrections, one_shorter).min_margin
    entries = torch.cat([chunk.firing.entry for chunk in prepared.corrections.chunks if chunk.firing])
    places = torch.cat([chunk.samples for chunk in prepared.corrections.chunks])
    for entry in range(len(near.values)):
        own = places[entries == entry]
        assert (shorter[own] < 0.01).any() or float(sizes[0][entry]) == pytest.approx(SIZES[0])


@pytest.mark.parametrize("kind", sorted(DIRECTIONS))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_untrained_values_bring_edits_nearer_to_holding(architecture: str, kind: str) -> None:
    work, prepared, start = started(case(architecture))
    direction = DIRECTIONS[kind](work, prepared, start)
    term = along(work.network, prepared, start, direction, 0.5, work.hyper.margin)
    before, after = (
        states_with_term(work.network, prepared.corrections, each).min_margin for each in (start, term)
    )
    assert after.mean() > before.mean()


@pytest.mark.parametrize("kind", sorted(DIRECTIONS))
def test_a_job_may_ask_for_values_that_were_not_trained(kind: str) -> None:
    of = case("bert")
    found, again = (train(of, Recipe.SCOPED, entry_values=kind, max_steps=20) for _ in range(2))
    assert isinstance(found.term, Scoped) and isinstance(again.term, Scoped)
    assert torch.equal(found.term.values, again.term.values)
    assert not found.term.down.shape[1], "a value is all there is"
    assert num_right(of, of.batch.edit_samples, (as_delta(of, found),)) == len(of.batch.edit_samples)
