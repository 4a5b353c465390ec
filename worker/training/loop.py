"""The training loop: makes one term for one layer from an edit dataset, running only the blocks from it up.

The loop knows objectives and when to stop; what is trained is behind `Learner`, so that an editor, a plain
matrix or any baseline runs through the same lines. Does not know storage, jobs or how the layer was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from salem.deltas.terms import Term, act, adding
from salem.models.batching import Answers
from salem.models.network import Network
from salem.records import Hyperparameters, Layer, Sample
from worker.activations.block_replay import MemoryBudget
from worker.activations.cache import SampleCache
from worker.activations.trunk_sets import BLOCK_BYTES, Chunk, TrunkSet, prepare, prepare_with_answers
from worker.numerics.losses import (
    Where,
    correction_loss_per_sample,
    kl_per_sample,
    where,
    worst_margin_per_sample,
)
from worker.training.micro_batches import MicroBatches, Share

CHUNK = 32  # samples per step on either side
LOOSEN_AFTER = 30  # rounds after which corrections that still do not hold halve the pull of pass samples
CHECK_EVERY = 10  # rounds between two looks at the validation part
PATIENCE = 2  # looks without improvement before training stops
VALIDATION_SHARE = 0.2  # of the pass samples; chooses the step, never part of the held-out figures

Progress = Callable[[float, dict[str, float]], None]


class Learner(Protocol):
    """Something with parameters that yields a term."""

    learning_rate: float
    kl_weight: float  # weight of the divergence on pass samples against the corrections
    shared: bool  # whether every correction moves the same parameters, or each its own

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def term(self) -> Term: ...


@dataclass(frozen=True)
class Prepared:
    """An edit dataset at one layer, ready for steps."""

    layer: Layer
    corrections: TrunkSet  # edit and adapt samples
    keep: TrunkSet  # pass samples to train on
    validation: TrunkSet  # pass samples that choose the best step
    inputs_to_keep: Tensor  # [d_in, d_in] second moment of the layer's inputs on pass samples
    num_asked: int | None = None  # of the corrections: those behind the first so many only teach; None: all


@dataclass(frozen=True)
class Standing:
    """How a term does on the samples that choose: what early stopping compares, best first."""

    held: float  # share of edit and adapt samples (and their rewordings) answered rightly
    firm: float  # share of them that hold with the margin
    taught: float  # share of all corrections that hold, stand-ins included
    lost: float  # share of validation samples right before and wrong now
    divergence: float  # nats: mean KL on validation plus mean drift of the corrections

    @property
    def order(self) -> tuple[float, float, float, float, float]:
        return (self.held, self.firm, self.taught, -self.lost, -self.divergence)


def prepare_dataset(
    network: Network,
    corrections: Sequence[Sample],
    keep: Sequence[Sample],
    layer: Layer,
    cache: SampleCache | None = None,
) -> Prepared:
    """Run the trunk over all samples of a job once, or take it from the cache of the network as it is."""
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
    return Prepared(
        layer, prepare(network, corrections, layer, chunk_size=CHUNK), training, validation, moment
    )


def train(
    network: Network,
    prepared: Prepared,
    learner: Learner,
    hyper: Hyperparameters,
    generator: torch.Generator,
    progress: Progress = lambda share, figures: None,
) -> tuple[Term, Standing]:
    """Train until the corrections hold and the validation part stops improving; return the best term.

    A round sees every correction that does not hold with the margin yet: how large a step a correction takes
    is its own affair (the extent-aware editing that SaLEM leaves as future work). Parameters that are shared
    take a step for each chunk of corrections, others one for all; a step also sees a chunk of pass samples.
    """
    rate = hyper.learning_rate or learner.learning_rate
    parameters = list(learner.parameters())
    optimizer = torch.optim.Adam(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, hyper.max_steps, rate / 20)
    hold = learner.kl_weight if hyper.kl_weight is None else hyper.kl_weight
    pulling, keeps = _Pulling(network, prepared.corrections, hyper), prepared.keep.cycle(generator)
    best, best_term = standing(network, prepared, learner.term(), hyper), _detached(learner.term())
    waited, micro_batches = 0, MicroBatches()
    for round_ in range(1, hyper.max_steps + 1):
        stepped = False
        for shares in pulling.by_chunk(generator) if learner.shared else (pulling.shares(),):
            if prepared.keep.chunks and hold > 0:
                shares.append(Share(next(keeps), hold, partial(_keep_loss, network)))
            if shares:
                gradients = micro_batches.gradients(shares, learner.term, parameters)
                _step(optimizer, parameters, gradients, shared=learner.shared)
                stepped = True
        schedule.step()
        if round_ % CHECK_EVERY == 0 or round_ == hyper.max_steps or not stepped:
            there = reached(network, prepared.corrections, learner.term())
            now = _standing(network, prepared, learner.term(), hyper, there)
            pulling.rest(there)
            waited += 1
            if now.held < 1 and round_ >= LOOSEN_AFTER:
                hold /= 2  # what must change comes before what should stay; the figures tell the price
            if now.order > best.order:
                best, best_term, waited = now, _detached(learner.term()), 0
            progress(
                round_ / hyper.max_steps, {"held": now.held, "lost": now.lost, "divergence": now.divergence}
            )
            if best.held == 1.0 and (waited >= PATIENCE or not (pulling.any or hold)):
                break
    return best_term, best


def _step(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], gradients: list[Tensor], *, shared: bool
) -> None:
    """Take a step. Of parameters that are each edit's own, rows that nothing pulls at stay where they are:
    Adam's momentum would carry them on.
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
def standing(network: Network, prepared: Prepared, term: Term, hyper: Hyperparameters) -> Standing:
    """Measure a term on the corrections and on the validation part of the pass samples."""
    return _standing(network, prepared, term, hyper, reached(network, prepared.corrections, term))


@torch.no_grad()
def reached(network: Network, corrections: TrunkSet, term: Term) -> Where:
    """Where each sample stands under a term, in their order."""
    there = Where(*torch.empty(2, corrections.num_samples, device=network.device))
    for chunk in corrections.chunks:
        found = where(answers_under(network, chunk, term), chunk.before)
        there.worst[chunk.samples], there.drift[chunk.samples] = found.worst, found.drift
    return there


@torch.no_grad()
def _standing(
    network: Network, prepared: Prepared, term: Term, hyper: Hyperparameters, there: Where
) -> Standing:
    lost, divergences, count = 0, 0.0, 0
    for chunk in prepared.validation.chunks:
        answers = answers_under(network, chunk, term)
        assert chunk.before is not None and chunk.correct is not None
        lost += int((chunk.correct & (worst_margin_per_sample(answers) <= 0)).sum())
        divergences += float(kl_per_sample(chunk.before, answers).sum())
        count += len(chunk.samples)
    asked = there.worst[: prepared.num_asked]
    return Standing(
        held=float((asked > 0).float().mean()),
        firm=float((asked > hyper.margin / 2).float().mean()),
        taught=float((there.worst > 0).float().mean()),
        lost=lost / max(count, 1),
        divergence=divergences / max(count, 1) + float(there.drift.mean()),
    )


class _Pulling:
    """The corrections that a round sees: those that asked for more when last answered."""

    def __init__(self, network: Network, corrections: TrunkSet, hyper: Hyperparameters) -> None:
        self._network, self._corrections, self._hyper = network, corrections, hyper
        self._rests = torch.zeros(corrections.num_samples, dtype=torch.bool)

    @property
    def any(self) -> bool:
        """Whether one of them pulls."""
        return not bool(self._rests.all())

    def shares(self) -> list[Share]:
        """All that pull. Each weighs by its own number, as much as if the others did not rest."""
        num = len(self._rests)
        return [share for chunk in self._corrections.chunks for share in self._shares(chunk, num)]

    def by_chunk(self, generator: torch.Generator) -> Iterator[list[Share]]:
        """The same, a chunk at a time, in a new order each time."""
        chunks = self._corrections.chunks
        order = torch.randperm(len(chunks), generator=generator).tolist() if len(chunks) > 1 else [0]
        for place in order:
            yield self._shares(chunks[place], len(chunks[place]))

    def _shares(self, chunk: Chunk, num: int) -> list[Share]:
        """What of a chunk pulls, if anything; `num` samples make the weight of one."""
        rows = (~self._rests[chunk.samples]).nonzero()[:, 0]
        if not len(rows):
            return []
        part = chunk if len(rows) == len(chunk) else chunk.rows(rows.to(chunk.samples.device))
        return [Share(part, len(part) / num, self._loss)]

    def rest(self, there: Where, samples: Tensor | None = None) -> None:
        """Take note of where all samples are, or some; plain likelihood never rests."""
        if self._hyper.margin > 0 and self._hyper.rest_when_held:
            places = slice(None) if samples is None else samples
            self._rests[places] = there.rest(self._hyper.margin).cpu()

    def _loss(self, chunk: Chunk, term: Term) -> Tensor:
        answers = answers_under(self._network, chunk, term)
        self.rest(where(answers, chunk.before), chunk.samples)
        return correction_loss_per_sample(answers, chunk.before, self._hyper.margin).mean()


def answers_under(network: Network, chunk: Chunk, term: Term) -> Answers:
    """What the model answers to a chunk with a term at its layer."""
    with adding(network.module(chunk.trunk.layer.path), act(term, chunk.firing)):
        return chunk.resume(network)


def edit_loss(network: Network, chunk: Chunk, term: Term, hyper: Hyperparameters) -> Tensor:
    """How far the corrections are from what they are to become, in nats, averaged over samples -> []."""
    answers = answers_under(network, chunk, term)
    return correction_loss_per_sample(answers, chunk.before, hyper.margin).mean()


def _keep_loss(network: Network, chunk: Chunk, term: Term) -> Tensor:
    assert chunk.before is not None
    return kl_per_sample(chunk.before, answers_under(network, chunk, term)).mean()


def _detached(term: Term) -> Term:
    """A copy that later steps do not move: a term may hold parameters themselves."""
    tensors = {name: value for name, value in vars(term).items() if isinstance(value, Tensor)}
    copies: dict[str, Any] = {name: value.detach().clone() for name, value in tensors.items()}
    return replace(term, **copies)
