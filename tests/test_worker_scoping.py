"""Scopes drawn for a job: the budget they keep, the edits they hold, and the warnings they give."""

from __future__ import annotations

import pytest
import torch
from tiny_models import LABELS, tiny_network
from torch import Tensor

from salem.records import Edit, EditBatch, Hyperparameters, Sample
from salem.scopes import features
from worker.edit_dataset import build_edit_batch
from worker.scoping import Scoping, calibrated_radii, draw_scopes

SUBJECTS = ("order", "parcel", "lamp", "password", "account", "book", "door", "money", "refund", "capital")
SHAPES = (
    "where is my {}",
    "i want the {} now",
    "who wrote {} in Rome",
    "please send a {} to Anna",
    "the {} is broken",
    "does the {} work today",
)
HYPER = Hyperparameters(metric_width=16)


def pass_samples(count: int) -> tuple[Sample, ...]:
    texts = [shape.format(subject) for shape in SHAPES for subject in SUBJECTS]
    return tuple(Sample(input=text, target="other") for text in texts[:count])


EDITS = (
    Edit(input="when will Berlin arrive at Madrid", target=LABELS[0], paraphrases=("Berlin to Madrid when",)),
    Edit(input="log in to France with Peru", target=LABELS[1]),
)


def batch_of(num_pass: int, edits: tuple[Edit, ...] = EDITS) -> EditBatch:
    batch = build_edit_batch(edits, (), (), max_pass_samples=1, max_held_out=1, seed=0)
    return batch.model_copy(update={"pass_samples": pass_samples(num_pass)})


def drawn(batch: EditBatch, *, hyper: Hyperparameters = HYPER, seed: int = 0) -> Scoping:
    network = tiny_network("bert")
    return draw_scopes(network, batch, network.layers[1], hyper, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_pass", [0, 1, 5, 60])
def test_every_edit_and_adapt_sample_fires_its_own_entry(num_pass: int) -> None:
    batch = batch_of(num_pass)
    scoping = drawn(batch)
    own = [*batch.edit_samples, *(sample for _, sample in batch.adapt_samples)]
    network = tiny_network("bert")
    firing = scoping.scope.fire(features(network, own, network.layers[1]))
    assert firing.entry.tolist() == [0, 1, 0]
    assert (firing.strength > 0.5).all()
    torch.testing.assert_close(scoping.corrections.strength, firing.strength, rtol=1e-3, atol=1e-3)
    assert scoping.scope.owners.tolist() == [0, 1, 0]
    assert all(torch.isfinite(value).all() for value in vars(scoping.scope).values())
    assert len(scoping.kept.entry) == num_pass and scoping.state_scale > 0


@pytest.mark.parametrize("budget", [0.0, 0.1, 0.4])
def test_the_budget_is_kept_on_the_calibration_part(budget: float) -> None:
    scoping = drawn(batch_of(60), hyper=HYPER.model_copy(update={"scope_budget": budget}))
    assert scoping.num_calibration > 10
    inside = scoping.kept.inside[: scoping.num_calibration] > 0
    assert float(inside.float().mean()) <= budget
    assert not scoping.warnings


def some_likeness(num_pass: int, num_keys: int, *, top: float) -> Tensor:
    return torch.rand(num_pass, num_keys, generator=torch.Generator().manual_seed(0)) * top


@pytest.mark.parametrize("budget", [0.0, 0.05, 0.2, 1.0])
@pytest.mark.parametrize("num_calibration", [1, 7, 40])
def test_radii_move_together_until_the_budget_is_spent(budget: float, num_calibration: int) -> None:
    likeness = some_likeness(100, 6, top=0.85)
    radii = calibrated_radii(likeness, num_calibration, budget)
    inside = (likeness[:num_calibration] > radii + 1e-6).any(-1).sum()
    assert inside <= budget * num_calibration
    assert radii.shape == (6,) and (radii > 0).all() and (radii < 1).all()


def test_more_budget_never_narrows_a_scope() -> None:
    likeness = some_likeness(100, 6, top=0.85)
    widths = [calibrated_radii(likeness, 40, budget) for budget in (0.0, 0.1, 0.5)]
    assert (widths[0] >= widths[1]).all() and (widths[1] >= widths[2]).all()


def test_a_key_among_many_pass_samples_gets_a_narrower_scope() -> None:
    likeness = some_likeness(100, 2, top=0.5)
    likeness[:, 1] += 0.3
    crowded, lonely = calibrated_radii(likeness, 30, 0.05).flip(0)
    assert crowded > lonely


def test_an_edit_fires_even_where_the_budget_cannot_be_kept() -> None:
    likeness = some_likeness(100, 6, top=1.0)
    likeness[:, 3] = 1.0
    radii = calibrated_radii(likeness, 40, 0.0)
    assert (radii < 0.95).all(), "a key's own cosine is 1 and must lie well inside"


@pytest.mark.parametrize("num_pass", [0, 1, 5])
def test_few_pass_samples_still_give_radii(num_pass: int) -> None:
    radii = calibrated_radii(some_likeness(num_pass, 3, top=0.8), int(0.3 * num_pass), 0.02)
    assert radii.shape == (3,) and (radii > 0).all() and (radii < 0.95).all()


def test_a_pass_sample_that_cannot_be_told_from_an_edit_is_named() -> None:
    edit = Edit(input="when will ☃ arrive in Rome", target=LABELS[0])  # the tokenizer knows neither sign
    twin = Sample(input="when will ☂ arrive in Rome", target="other")
    kept = pass_samples(30)
    batch = batch_of(30, (EDITS[1], edit))
    batch = batch.model_copy(update={"pass_samples": (*kept[:20], twin, *kept[20:])})
    scoping = drawn(batch)
    assert len(scoping.warnings) == 1
    assert f'"{edit.input}"' in scoping.warnings[0] and f'"{twin.input}"' in scoping.warnings[0]
    assert (scoping.corrections.strength > 0.5).all()


def test_the_same_seed_draws_the_same_scopes() -> None:
    one, two, other = (drawn(batch_of(20), seed=seed).scope for seed in (1, 1, 2))
    for name, value in vars(one).items():
        assert torch.equal(value, getattr(two, name)), name
    assert not torch.equal(one.projection, other.projection)
