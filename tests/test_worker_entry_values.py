"""Values of entries without training: their directions, how far they go, and that edits hold by them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_worker_recipes import Case, as_delta, case, hyper, num_right, train

from salem.records import Recipe
from salem.scopes import Scoped
from worker import entry_values
from worker.editor import MendEditor
from worker.entry_values import DIRECTIONS, SIZES, along, closed_form
from worker.gradients import suffix_gradients
from worker.learners import empty_entries
from worker.losses import correction_loss_per_sample
from worker.scoped_entries import _num_positions, _prepare_scoped
from worker.scoping import draw_scopes
from worker.training import Prepared, answers_under, reached
from worker.work import Left, Work

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
        for answers in [answers_under(work.network, chunk, term)]
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
def test_an_editor_that_has_learned_nothing_moves_against_the_gradient(architecture: str) -> None:
    work, prepared, start = started(case(architecture))
    layer = work.layer
    fresh = MendEditor(layer.d_in, layer.d_out, 4, torch.Generator().manual_seed(0))
    expected = torch.zeros_like(start.values)
    for chunk in prepared.corrections.chunks:
        found, firing = suffix_gradients(work.network, chunk.trunk), chunk.firing
        assert firing is not None and firing.starts is not None
        for row in range(found.v.shape[0]):
            for column in range(found.v.shape[1]):
                place = min(max(column - int(firing.starts[row]), 0), start.values.shape[1] - 1)
                expected[int(firing.entry[row]), place] -= found.v[row, column]
    total = sum(
        entry_values._moves(work.network, fresh, chunk, start) for chunk in prepared.corrections.chunks
    )
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-6)


def test_each_entry_goes_as_far_as_it_must_and_no_farther() -> None:
    work, prepared, start = started(case("bert"))
    direction = closed_form(work, prepared, start)
    near, far = (along(work.network, prepared, start, direction, 0.1, margin) for margin in (0.01, 3.0))
    sizes = [term.values.square().mean(-1).sqrt().amax(-1) / 0.1 for term in (near, far)]
    for found in sizes:
        assert all(min(abs(float(size) - known) for known in SIZES) < 1e-3 for size in found)
    assert (sizes[0] <= sizes[1]).all() and (sizes[0] < sizes[1]).any()
    held = reached(work.network, prepared.corrections, near).worst > 0
    assert held.any()
    one_shorter = replace(near, values=near.values / 2)
    shorter = reached(work.network, prepared.corrections, one_shorter).worst
    entries = torch.cat([chunk.firing.entry for chunk in prepared.corrections.chunks if chunk.firing])
    places = torch.cat([chunk.samples for chunk in prepared.corrections.chunks])
    for entry in range(len(near.values)):
        own = places[entries == entry]
        assert (shorter[own] < 0.01).any() or float(sizes[0][entry]) == pytest.approx(SIZES[0])


@pytest.mark.parametrize(
    ("architecture", "kind"),
    # An editor's move is fitted to a change of the matrix: on the random Llama it is none of a value.
    [(one, kind) for one in ARCHITECTURES for kind in DIRECTIONS if (one, kind) != ("llama", "editor")],
)
def test_untrained_values_bring_edits_nearer_to_holding(architecture: str, kind: str) -> None:
    work, prepared, start = started(case(architecture))
    direction = DIRECTIONS[kind](work, prepared, start)
    term = along(work.network, prepared, start, direction, 0.5, work.hyper.margin)
    before, after = (reached(work.network, prepared.corrections, each).worst for each in (start, term))
    assert after.mean() > before.mean()


@pytest.mark.parametrize("kind", sorted(DIRECTIONS))
def test_a_job_may_ask_for_values_that_were_not_trained(kind: str) -> None:
    of = case("bert")
    found, again = (train(of, Recipe.SCOPED, entry_values=kind, max_steps=20) for _ in range(2))
    assert isinstance(found.term, Scoped) and isinstance(again.term, Scoped)
    assert torch.equal(found.term.values, again.term.values)
    assert not found.term.down.shape[1], "a value is all there is"
    assert num_right(of, of.batch.edit_samples, (as_delta(of, found),)) == len(of.batch.edit_samples)
