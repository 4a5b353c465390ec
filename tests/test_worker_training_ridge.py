"""The ridge solve against dense least squares in float64, and what its rounds reach on a tiny model."""

from __future__ import annotations

import pytest
import torch
from test_worker_activations_gradients import in_double, some_samples
from tiny_models import LABELS, tiny_network
from torch import Tensor

from salem.deltas.terms import Dense, LowRank, adding
from salem.errors import EditFailed
from salem.models.batching import encode, forward
from salem.models.network import Network
from salem.records import Sample
from worker.activations.trunk_sets import TrunkSet
from worker.numerics.losses import margin_loss_per_sample, margins
from worker.training.loop import Prepared, prepare_dataset, score_term
from worker.training.options import MARGIN
from worker.training.ridge import (
    StopRule,
    ridge_factor,
    ridge_rows,
    ridge_step,
    ridge_term,
    ridge_update,
    sufficient_margin,
)

WORDS = ("red", "blue", "lamp", "order", "account", "city", "password", "train", "river", "stone")


def wrong_samples(network: Network) -> list[Sample]:
    """Samples whose targets the network does not give, so that there is something to correct."""
    samples = some_samples(network)
    if network.task.generates:
        return samples
    found = forward(network, encode(network, samples)).logits.argmax(-1).tolist()
    targets = [LABELS[(index + 1) % len(LABELS)] for index in found]
    return [s.model_copy(update={"target": target}) for s, target in zip(samples, targets, strict=True)]


def pass_samples(network: Network) -> list[Sample]:
    target = "Paris" if network.task.generates else LABELS[0]
    return [Sample(input=f"{first} {second}", target=target) for first in WORDS for second in WORDS[:3]]


def prepared_at(network: Network, place: int) -> Prepared:
    layer = network.layers[place]
    return prepare_dataset(network, wrong_samples(network), pass_samples(network), layer)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("num_rows", "kind"), [(2, LowRank), (40, Dense)])
@pytest.mark.parametrize("strength", [0.1, 10.0])
def test_the_delta_solves_the_regression(num_rows: int, kind: type, strength: float) -> None:
    u, wanted, root = drawn(num_rows, 6), drawn(num_rows, 5, seed=1), drawn(6, 6, seed=2)
    moment = root @ root.T
    # The penalty as more rows: each column of the root is an input whose output must not change.
    design = torch.cat([u, strength**0.5 * root.T])
    target = torch.cat([wanted, wanted.new_zeros(6, 5)])
    expected = torch.linalg.lstsq(design, target).solution.T
    found = ridge_update(ridge_factor(u, moment, strength), wanted)
    assert isinstance(found, kind)
    torch.testing.assert_close(found.dense().double(), expected, rtol=1e-3, atol=1e-4)


def test_directions_that_no_input_has_can_be_solved() -> None:
    u, wanted = torch.eye(4)[:1], torch.ones(1, 3)
    found = ridge_update(ridge_factor(u, torch.zeros(4, 4), strength=1.0), wanted)
    torch.testing.assert_close(found(u), wanted, rtol=1e-4, atol=1e-4)
    assert float(found(torch.eye(4)[1:]).abs().max()) < 1e-6


def test_a_stronger_penalty_changes_pass_outputs_less() -> None:
    u, wanted, kept = drawn(3, 8), drawn(3, 5, seed=1), drawn(20, 8, seed=3)
    moment = kept.T @ kept / len(kept)
    updates = [ridge_update(ridge_factor(u, moment, s), wanted) for s in (0.01, 1.0, 100.0)]
    moved = [float(update(kept.float()).norm()) for update in updates]
    assert moved == sorted(moved, reverse=True) and moved[2] < moved[0] / 5


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
def test_a_step_follows_the_gradient_at_the_current_weights(architecture: str) -> None:
    network = in_double(architecture)
    prepared = prepared_at(network, 1)
    layer, chunk = prepared.layer, prepared.corrections.chunks[0]
    term = Dense(0.05 * drawn(layer.d_out, layer.d_in))
    rows = ridge_rows(network, prepared, 6.0)
    rows_in_double = rows.u.double()
    found = ridge_step(network, rows, term, StopRule(6.0, 1e9, 1))
    weight = term.weight.clone().requires_grad_()
    with adding(network.module(layer.path), Dense(weight)):
        losses = margin_loss_per_sample(forward(network, chunk.trunk.batch), 6.0)
    torch.testing.assert_close(found.loss, losses.detach(), rtol=1e-5, atol=1e-6)
    for sample in range(3):
        (gradient,) = torch.autograd.grad(losses[sample], weight, retain_graph=True)
        mine = rows.owners == sample
        step = found.step[mine].double()
        direction = step.T @ rows_in_double[mine]  # -(loss / ||v||²) vᵀu
        ratio = (direction * gradient).sum() / gradient.square().sum()
        torch.testing.assert_close(direction, ratio * gradient, rtol=1e-3, atol=1e-5)
        v_norm_squared = step.square().sum() / ratio.square()
        assert float(-ratio * v_norm_squared) == pytest.approx(float(losses[sample].detach()), rel=1e-3)


def test_a_sample_with_a_sufficient_margin_takes_no_step() -> None:
    network = tiny_network("bert")
    rows = ridge_rows(network, prepared_at(network, 1), 6.0)
    layer = network.layers[1]
    nothing = Dense(torch.zeros(layer.d_out, layer.d_in))
    assert bool((ridge_step(network, rows, nothing, StopRule(6.0, -1e9, 1)).step == 0).all())


@pytest.mark.parametrize(("architecture", "place"), [("bert", 1), ("gpt2", 1), ("llama", 1), ("t5", -2)])
def test_the_closed_form_corrects(architecture: str, place: int) -> None:
    network = tiny_network(architecture)
    prepared = prepared_at(network, place)
    layer = prepared.layer
    nothing = Dense(torch.zeros(layer.d_out, layer.d_in))
    term, found = ridge_term(network, prepared, MARGIN, (10.0, 0.1, 0.001))
    assert score_term(network, prepared, nothing, MARGIN).held < 0.5
    assert found.held == 1.0
    assert found == score_term(network, prepared, term, MARGIN)


def test_the_sufficient_margin_is_that_of_a_typical_pass_sample() -> None:
    network = tiny_network("bert")
    prepared = prepared_at(network, 1)
    own = torch.cat([margins(forward(network, chunk.trunk.batch)) for chunk in prepared.keep.chunks])
    expected = max(0.5, float(own.quantile(0.25)))
    assert sufficient_margin(prepared, 1e9) == pytest.approx(expected, rel=1e-4)
    assert sufficient_margin(prepared, 0.25) == 0.25


def test_edits_without_a_gradient_are_refused() -> None:
    network = tiny_network("bert")
    prepared = prepared_at(network, 1)
    empty = Prepared(
        prepared.layer, TrunkSet(()), prepared.keep, prepared.validation, prepared.inputs_to_keep
    )
    with pytest.raises(EditFailed, match="no gradient"):
        ridge_rows(network, empty, 6.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_states_that_overflow_are_refused(value: float) -> None:
    u = drawn(2, 8)
    u[1, 3] = value
    with pytest.raises(EditFailed, match="overflow on some of the samples"):
        ridge_factor(u, torch.eye(8), 1.0)


def test_a_moment_that_rounding_made_negative_is_solved() -> None:
    draw = torch.Generator().manual_seed(0)
    few = torch.randn(3, 200, generator=draw)
    moment = few.T @ few * 1e4
    moment -= 1e-3 * torch.eye(200)  # what float32 may lose beside entries of this size
    u = torch.randn(2, 200, generator=draw)
    factor = ridge_factor(u, moment, 1.0)
    assert factor.isfinite().all()
    reached = u.double() @ factor.T
    assert (reached.diagonal() > 0.1).all() and (few.double() @ factor.T).abs().max() < 1e-3
