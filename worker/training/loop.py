"""The training loop: makes one term for one layer from an edit dataset, running only the blocks from it up.

The loop knows the objectives and when to stop. What is trained is behind `Learner`, so an editor, a plain
matrix, or any baseline runs through the same lines. Must not know storage, jobs, or how the layer was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from salem.deltas.terms import Term
from salem.models.network import Network
from salem.records import Layer, Sample
from worker.activations.block_replay import MemoryBudget
from worker.activations.cache import SampleCache
from worker.activations.trunk_sets import BLOCK_BYTES, Chunk, TrunkSet, prepare, prepare_with_answers
from worker.numerics.losses import (
    CorrectionStates,
    correction_loss_per_sample,
    correction_states,
    kl_per_sample,
    min_margin_per_sample,
)
from worker.training.active_corrections import ActiveCorrections, answers_with_term
from worker.training.micro_batches import MicroBatches, WeightedLoss
from worker.training.options import TrainingOptions

CHUNK = 32  # samples per step, of corrections and of pass samples each
LOOSEN_AFTER = 30  # rounds after which the weight of pass samples is halved while corrections do not hold
CHECK_EVERY = 10  # rounds between two validations
PATIENCE = 2  # validations without improvement before training stops
VALIDATION_SHARE = 0.2  # of the pass samples: they choose the best step and are never held out

Progress = Callable[[float, dict[str, float]], None]


class Learner(Protocol):
    """Something with parameters that yields a term."""

    shared: bool  # whether all corrections move the same parameters, or each its own

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def term(self) -> Term: ...


@dataclass(frozen=True)
class Prepared:
    """An edit dataset prepared at one layer."""

    layer: Layer
    corrections: TrunkSet  # edit and adapt samples
    keep: TrunkSet  # pass samples to train on
    validation: TrunkSet  # pass samples that choose the best step
    inputs_to_keep: Tensor  # [d_in, d_in] second moment of the layer's inputs on pass samples
    num_own_corrections: int | None = None  # those after it are anchor samples; None: there are none


@dataclass(frozen=True)
class TermScore:
    """How well a term does on the samples that choose the best step; early stopping compares by `order`."""

    held: float  # share of edit and adapt samples (and their augmentations) answered correctly
    firm: float  # share of them that hold with half the margin
    all_held: float  # share of all corrections that hold, including anchor samples
    lost: float  # share of validation samples that were correct before and are wrong now
    divergence: float  # nats: mean KL on validation samples plus mean forgetting KL of the corrections

    @property
    def order(self) -> tuple[float, float, float, float, float]:
        return (self.held, self.firm, self.all_held, -self.lost, -self.divergence)


def prepare_dataset(
    network: Network,
    corrections: Sequence[Sample],
    keep: Sequence[Sample],
    layer: Layer,
    cache: SampleCache | None = None,
) -> Prepared:
    """Run the trunk once over all samples of a job, or read it from the cache of the same network."""
    num_validation = int(len(keep) * VALIDATION_SHARE)
    run = partial(
        prepare_with_answers,
        network,
        layer=layer,
        chunk_size=CHUNK,
        cache=cache,
        budget=MemoryBudget(BLOCK_BYTES),
    )
    training, moment = run(keep[num_validation:])
    validation, _ = run(keep[:num_validation])
    own = prepare(network, corrections, layer, chunk_size=CHUNK)
    return Prepared(layer, own, training, validation, moment)


def train(
    network: Network,
    prepared: Prepared,
    learner: Learner,
    options: TrainingOptions,
    generator: torch.Generator,
    progress: Progress = lambda share, figures: None,
) -> tuple[Term, TermScore]:
    """Train until the corrections hold and validation stops improving; return the best term.

    A round covers every correction that does not hold with the margin yet. Shared parameters take one step
    per chunk of corrections, others one step for all; each step also sees a chunk of pass samples.
    """
    rate = options.learning_rate
    parameters, micro_batches = list(learner.parameters()), MicroBatches()
    optimizer = torch.optim.Adam(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.max_steps, rate / 20)
    active = ActiveCorrections(network, prepared.corrections, options)
    keeps = prepared.keep.cycle(generator)
    keep_weight = options.kl_weight
    best, best_term = score_term(network, prepared, learner.term(), options.margin), _detached(learner.term())
    checks_since_best = 0
    for round_ in range(1, options.max_steps + 1):
        stepped = False
        for losses in active.losses_by_chunk(generator) if learner.shared else (active.losses(),):
            if prepared.keep.chunks and keep_weight > 0:
                losses.append(WeightedLoss(next(keeps), keep_weight, partial(_keep_loss, network)))
            if losses:
                gradients = micro_batches.gradients(losses, learner.term, parameters)
                _step(optimizer, parameters, gradients, shared=learner.shared)
                stepped = True
        schedule.step()
        if round_ % CHECK_EVERY == 0 or round_ == options.max_steps or not stepped:
            states = states_with_term(network, prepared.corrections, learner.term())
            now = _score(network, prepared, learner.term(), options.margin, states)
            active.update(states)
            checks_since_best += 1
            if now.held < 1 and round_ >= LOOSEN_AFTER:
                keep_weight /= 2  # corrections come before pass samples; the metrics report the cost
            if now.order > best.order:
                best, best_term, checks_since_best = now, _detached(learner.term()), 0
            figures = {"held": now.held, "lost": now.lost, "divergence": now.divergence}
            progress(round_ / options.max_steps, figures)
            if best.held == 1.0 and (checks_since_best >= PATIENCE or not (active.any or keep_weight)):
                break
    return best_term, best


def _step(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], gradients: list[Tensor], *, shared: bool
) -> None:
    """Take one step. If each edit has its own rows, rows without a gradient stay where they are.

    Adam's momentum would move them on.
    """
    before = None if shared else [parameter.detach().clone() for parameter in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    if before is not None:
        for parameter, gradient, old in zip(parameters, gradients, before, strict=True):
            resting = ~gradient.flatten(1).any(1)  # [e]
            parameter.data[resting] = old[resting]


@torch.no_grad()
def score_term(network: Network, prepared: Prepared, term: Term, margin: float) -> TermScore:
    """Measure a term on the corrections and on the validation pass samples."""
    return _score(network, prepared, term, margin, states_with_term(network, prepared.corrections, term))


@torch.no_grad()
def states_with_term(network: Network, corrections: TrunkSet, term: Term) -> CorrectionStates:
    """The states of all corrections with a term, in the order of the samples."""
    states = CorrectionStates(*torch.empty(2, corrections.num_samples, device=network.device))
    for chunk in corrections.chunks:
        found = correction_states(answers_with_term(network, chunk, term), chunk.before)
        states.min_margin[chunk.samples] = found.min_margin
        states.forgetting_kl[chunk.samples] = found.forgetting_kl
    return states


@torch.no_grad()
def _score(
    network: Network, prepared: Prepared, term: Term, margin: float, states: CorrectionStates
) -> TermScore:
    lost, divergences, count = 0, 0.0, 0
    for chunk in prepared.validation.chunks:
        answers = answers_with_term(network, chunk, term)
        assert chunk.before is not None and chunk.correct is not None
        lost += int((chunk.correct & (min_margin_per_sample(answers) <= 0)).sum())
        divergences += float(kl_per_sample(chunk.before, answers).sum())
        count += len(chunk.samples)
    own = states.min_margin[: prepared.num_own_corrections]
    return TermScore(
        held=float((own > 0).float().mean()),
        firm=float((own > margin / 2).float().mean()),
        all_held=float((states.min_margin > 0).float().mean()),
        lost=lost / max(count, 1),
        divergence=divergences / max(count, 1) + float(states.forgetting_kl.mean()),
    )


def edit_loss(network: Network, chunk: Chunk, term: Term, margin: float) -> Tensor:
    """The mean loss of a chunk of corrections, in nats -> []."""
    answers = answers_with_term(network, chunk, term)
    return correction_loss_per_sample(answers, chunk.before, margin).mean()


def _keep_loss(network: Network, chunk: Chunk, term: Term) -> Tensor:
    assert chunk.before is not None
    return kl_per_sample(chunk.before, answers_with_term(network, chunk, term)).mean()


def _detached(term: Term) -> Term:
    """A copy that later steps do not change: a term may hold the parameters themselves."""
    tensors = {name: value for name, value in vars(term).items() if isinstance(value, Tensor)}
    copies: dict[str, Any] = {name: value.detach().clone() for name, value in tensors.items()}
    return replace(term, **copies)
