"""The training loop: which term it returns, when it stops, and what it counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from test_worker_recipes_terms import case
from torch import Tensor, nn

from salem.deltas.files import term_tensors
from salem.deltas.terms import LayerDelta, LowRank, applied
from salem.models.batching import encode, forward
from salem.records import Sample
from worker.activations.trunk_sets import TrunkSet
from worker.numerics.losses import CorrectionStates, kl_per_sample, min_margin_per_sample, nll_per_sample
from worker.training.active_corrections import ActiveCorrections
from worker.training.loop import (
    CHECK_EVERY,
    Prepared,
    _step,
    edit_loss,
    prepare_dataset,
    score_term,
    train,
)
from worker.training.options import TrainingOptions

OPTIONS = TrainingOptions(max_steps=40, learning_rate=0.05, kl_weight=0.1, margin=2.0)


class Factors:
    """The simplest learner: it returns the factors of the update without copying them."""

    shared = True

    def __init__(self, d_in: int, d_out: int, *, rank: int = 4) -> None:
        draw = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(rank, d_in, generator=draw) / d_in**0.5)
        self.b = nn.Parameter(torch.zeros(d_out, rank))
        self.seen: list[LowRank] = []

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter((self.a, self.b))

    def term(self) -> LowRank:
        self.seen.append(LowRank(self.a.detach().clone(), self.b.detach().clone()))
        return LowRank(self.a, self.b)


class Spoiled(Factors):
    """A learner whose update is spoiled after some terms, so that only early terms are good."""

    def __init__(self, d_in: int, d_out: int, *, good_terms: int) -> None:
        super().__init__(d_in, d_out)
        self.good_terms = good_terms

    def term(self) -> LowRank:
        if len(self.seen) == self.good_terms:
            with torch.no_grad():
                self.b.mul_(-50.0)
        return super().term()


def corrections() -> list[Sample]:
    batch = case("bert").batch
    return [*batch.edit_samples, *(sample for _, sample in batch.adapt_samples)]


def prepared() -> Prepared:
    of = case("bert")
    return prepare_dataset(of.network, corrections(), of.batch.pass_samples, of.network.layers[1])


def learner() -> Factors:
    layer = case("bert").network.layers[1]
    return Factors(layer.d_in, layer.d_out)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def random_term(scale: float = 0.3) -> LowRank:
    layer = case("bert").network.layers[1]
    a, b = (torch.randn(*shape, generator=generator()) for shape in ((2, layer.d_in), (layer.d_out, 2)))
    return LowRank(a, b * scale)


def test_pass_samples_are_split_between_training_and_choosing() -> None:
    ready, of = prepared(), case("bert")
    assert ready.validation.num_samples > 0
    assert ready.keep.num_samples + ready.validation.num_samples == len(of.batch.pass_samples)
    assert ready.corrections.num_samples == len(corrections())


def test_a_score_counts_the_answers_of_the_whole_model_with_the_term() -> None:
    of, term = case("bert"), random_term()
    count = prepared().validation.num_samples
    kept = list(of.batch.pass_samples[:count])

    def logits(samples: list[Sample]) -> tuple[Tensor, Tensor, Tensor]:
        batch = encode(of.network, samples)
        with torch.no_grad():
            before = forward(of.network, batch)
            with applied(of.network.model, [LayerDelta(of.network.layers[1].path, (term,))]):
                after = forward(of.network, batch)
        divergence = kl_per_sample(before.logits.log_softmax(-1), after)
        return min_margin_per_sample(before), min_margin_per_sample(after), divergence

    found = score_term(of.network, prepared(), term, OPTIONS.margin)
    _, margins, _ = logits(corrections())
    before, after, divergence = logits(kept)
    assert found.held == pytest.approx(float((margins > 0).float().mean()))
    assert found.firm == pytest.approx(float((margins > OPTIONS.margin / 2).float().mean()))
    assert found.lost == pytest.approx(float(((before > 0) & (after <= 0)).float().mean()))
    assert found.divergence == pytest.approx(float(divergence.mean()), rel=1e-3)
    assert found.divergence > 0


def test_without_a_margin_the_loss_is_plain_likelihood() -> None:
    of, ready = case("bert"), prepared()
    (chunk,) = ready.corrections.chunks
    found = edit_loss(
        of.network,
        chunk,
        LowRank(torch.zeros(1, 24), torch.zeros(16, 1)),
        0.0,
    )
    with torch.no_grad():
        expected = nll_per_sample(forward(of.network, encode(of.network, corrections()))).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_training_returns_the_best_term_with_its_score() -> None:
    of, ready = case("bert"), prepared()
    term, best = train(of.network, ready, learner(), OPTIONS, generator())
    assert best.held == 1.0
    assert score_term(of.network, ready, term, OPTIONS.margin) == best
    assert not any(value.requires_grad for value in term_tensors(term).values())


def test_later_steps_do_not_change_the_best_term() -> None:
    of, ready, layer = case("bert"), prepared(), case("bert").network.layers[1]
    spoiled = Spoiled(layer.d_in, layer.d_out, good_terms=2 * CHECK_EVERY + 4)
    term, best = train(of.network, ready, spoiled, OPTIONS, generator())
    assert isinstance(term, LowRank)
    assert any(torch.equal(term.a, seen.a) and torch.equal(term.b, seen.b) for seen in spoiled.seen)
    assert not torch.equal(term.b, spoiled.b)
    assert score_term(of.network, ready, term, OPTIONS.margin) == best


def test_the_same_seed_trains_the_same_term() -> None:
    of = case("bert")
    one, two = (train(of.network, prepared(), learner(), OPTIONS, generator())[0] for _ in range(2))
    assert isinstance(one, LowRank) and isinstance(two, LowRank)
    assert torch.equal(one.a, two.a) and torch.equal(one.b, two.b)


def test_progress_is_reported_and_ends_at_one_or_early() -> None:
    of, told = case("bert"), []
    train(
        of.network,
        prepared(),
        learner(),
        OPTIONS,
        generator(),
        lambda loss, figures: told.append((loss, figures)),
    )
    losses = [loss for loss, _ in told]
    assert losses == sorted(losses) and 0 < losses[0] <= losses[-1] <= 1
    assert all(set(figures) == {"held", "lost", "divergence"} for _, figures in told)


def test_training_stops_when_nothing_gets_better() -> None:
    of, still = case("bert"), learner()
    patient = OPTIONS.model_copy(update={"max_steps": 2_000})
    told: list[float] = []
    _, best = train(of.network, prepared(), still, patient, generator(), lambda loss, _: told.append(loss))
    assert best.held == 1.0
    assert told[-1] < 1.0


def test_pass_samples_reduce_the_divergence() -> None:
    of, ready = case("bert"), prepared()
    free, held = (
        train(of.network, ready, learner(), OPTIONS.model_copy(update={"kl_weight": weight}), generator())[1]
        for weight in (0.0, 10.0)
    )
    assert held.divergence < free.divergence


def cut(whole: TrunkSet, size: int) -> TrunkSet:
    """The same samples in chunks of this size."""
    parts = [chunk.rows(rows) for chunk in whole.chunks for rows in torch.arange(len(chunk)).split(size)]
    return TrunkSet(tuple(parts))


@pytest.mark.parametrize(("shared", "steps"), [(True, 2), (False, 1)])
def test_shared_parameters_take_a_step_for_each_chunk(shared: bool, steps: int) -> None:
    of, ready, one = case("bert"), prepared(), learner()
    ready = replace(ready, corrections=cut(ready.corrections, 2))
    assert len(ready.corrections.chunks) == 2
    one.shared = shared
    options = OPTIONS.model_copy(update={"max_steps": 1, "margin": 0.0})
    train(of.network, ready, one, options, generator())
    moved = {tuple(term.b.flatten().tolist()) for term in one.seen}
    assert len(moved) == steps + 1, "at the start, and after every step"


def test_a_round_covers_all_corrections_with_the_same_weight() -> None:
    of, ready = case("bert"), prepared()
    whole = cut(ready.corrections, 2)
    num = whole.num_samples
    assert num > 2
    active = ActiveCorrections(of.network, whole, OPTIONS)
    losses = [loss for step in active.losses_by_chunk(generator()) for loss in step]
    seen = torch.cat([loss.chunk.samples for loss in losses])
    assert sorted(seen.tolist()) == list(range(num))
    assert all(loss.weight == 1.0 for loss in losses), "a step is a mean over its chunk"
    draw = generator()
    firsts = [int(next(active.losses_by_chunk(draw))[0].chunk.samples[0]) for _ in range(20)]
    assert len(set(firsts)) > 1, "each round has its own order"
    worst = torch.full((num,), OPTIONS.margin + 1)
    worst[1] = OPTIONS.margin - 1
    active.update(holding(worst))
    steps = list(active.losses_by_chunk(generator()))
    assert sorted(len(step) for step in steps) == [0] * (len(whole.chunks) - 1) + [1]
    assert [loss.weight for step in steps for loss in step] == [0.5], "the other half of its chunk rests"


def holding(worst: Tensor) -> CorrectionStates:
    """States of corrections that forget nothing."""
    return CorrectionStates(worst, torch.zeros_like(worst))


def test_a_correction_that_holds_with_the_margin_rests_until_it_does_not() -> None:
    of, ready = case("bert"), prepared()
    num = ready.corrections.num_samples
    active = ActiveCorrections(of.network, ready.corrections, OPTIONS)
    assert sum(len(loss.chunk) for loss in active.losses()) == num and active.any
    worst = torch.full((num,), OPTIONS.margin + 1)
    worst[1] = OPTIONS.margin - 1
    active.update(holding(worst))
    (loss,) = active.losses()
    assert loss.chunk.samples.tolist() == [1]
    assert loss.weight == pytest.approx(1 / num), "resting corrections do not change its weight"
    active.update(holding(worst + 2))
    assert not active.losses() and not active.any
    active.update(holding(worst))
    assert active.any


@pytest.mark.parametrize("option", [{"margin": 0.0}, {"rest_when_held": False}], ids=str)
def test_without_a_margin_or_rest_when_held_no_correction_rests(option: dict[str, object]) -> None:
    of, ready = case("bert"), prepared()
    active = ActiveCorrections(of.network, ready.corrections, OPTIONS.model_copy(update=option))
    active.update(holding(torch.full((ready.corrections.num_samples,), 1e6)))
    assert sum(len(loss.chunk) for loss in active.losses()) == ready.corrections.num_samples


@pytest.mark.parametrize("shared", [True, False])
def test_momentum_does_not_move_rows_without_a_gradient(shared: bool) -> None:
    values = nn.Parameter(torch.zeros(2, 3, 4))
    optimizer = torch.optim.Adam([values], lr=0.1)
    both, second = torch.ones(2, 3, 4), torch.ones(2, 3, 4)
    second[0] = 0.0
    _step(optimizer, [values], [both], shared=shared)
    then = values.detach().clone()
    assert (then < 0).all()
    _step(optimizer, [values], [second], shared=shared)
    assert (values[1] < then[1]).all()
    assert torch.equal(values[0], then[0]) == (not shared)


def test_training_ends_once_all_hold_if_there_are_no_pass_samples() -> None:
    of, ready = case("bert"), prepared()
    learner = Factors(ready.layer.d_in, ready.layer.d_out)
    options = OPTIONS.model_copy(update={"kl_weight": 0.0, "margin": 0.05, "max_steps": 1_000})
    _, best = train(of.network, ready, learner, options, torch.Generator())
    assert best.held == 1.0
    assert len(learner.seen) < 100
