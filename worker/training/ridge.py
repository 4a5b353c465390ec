"""The closed form: solves a delta from the rows of the corrections, without training.

At the tokens of the corrections, the layer's output must change in a given way (down the gradient v). Of all
updates W that do this, ridge regression finds the one that changes the outputs on pass samples least:

    min_W  sum_rows ||W u - wanted||² + strength tr(W C Wᵀ)   =>   W = wantedᵀ U (UᵀU + strength C)⁻¹

C is the second moment of pass inputs. The solve over all rows at once is from MALMEN (Tan et al., ICLR 2024,
section 4.2), its use without a trained editor from UltraEdit (Gu et al. 2025), and the covariance penalty
from MEMIT (Meng et al., ICLR 2023, equation 14). One solve is a linearization. The solution is linear in what
is wanted, so later rounds follow the gradient at the current weights and reuse the factorization.

Must not know how pass samples were chosen, storage, or jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from salem.deltas.terms import Dense, LowRank, adding
from salem.errors import EditFailed
from salem.models.batching import Answers
from salem.models.network import Network
from salem.models.trunk import Trunk, resume
from worker.activations.gradients import suffix_gradients
from worker.numerics.losses import margin_loss_per_sample, margins, min_margin_per_sample
from worker.training.loop import Prepared, TermScore, score_term
from worker.training.options import MARGIN

STRENGTHS = (1e6, 1e5, 1e4)  # pass tokens per row of a correction (docs/log.md)
LEAST_MARGIN = 0.5
MAX_ROUNDS = 12
STEP_FACTORS = (1.0, 4.0)  # of the line search
TYPICAL = 0.25  # quantile of pass samples' margins: a correction with this margin holds
_JITTER = 1e-6  # of the mean variance: makes directions that no input has solvable


@dataclass(frozen=True)
class RidgeRows:
    """The tokens of the corrections that carry a gradient, as rows of one system."""

    trunks: tuple[Trunk, ...]
    kept: tuple[Tensor, ...]  # [n, t] bool per trunk: the tokens that are rows
    owners: Tensor  # [k] the sample of each row, numbered across the trunks
    u: Tensor  # [k, d_in]


@dataclass(frozen=True)
class StopRule:
    """When the rounds stop."""

    margin: float  # nats, of the loss
    sufficient: float  # nats: a correction with this margin is left alone
    max_rounds: int


@dataclass(frozen=True)
class RidgeStep:
    """The state of the corrections with a term, and the next step."""

    loss: Tensor  # [n] margin loss per sample
    min_margin: Tensor  # [n] smallest margin per sample
    step: Tensor  # [k, d_out] what each row must add so that a linear loss falls to zero


def ridge_factor(u: Tensor, moment: Tensor, strength: float) -> Tensor:
    """U (UᵀU + strength C)⁻¹ -> [k, d_in]; wantedᵀ times this factor is the update.

    Args:
        u: [k, d_in] inputs of the layer at the rows.
        moment: [d_in, d_in] C, the mean of u uᵀ over tokens of pass samples.

    Raises:
        EditFailed: an input is not finite.
    """
    rows = u.double()
    system = rows.T @ rows + strength * moment.double()
    return torch.cholesky_solve(rows.T, _cholesky(system)).T


def _cholesky(system: Tensor) -> Tensor:
    """The Cholesky factor of a system [d_in, d_in]; rounding may have made its moment slightly negative.

    Raises:
        EditFailed: a value in it is not finite.
    """
    if not system.isfinite().all():
        raise EditFailed(
            "The model's states overflow on some of the samples.",
            remedy="Host the weights in a wider type, such as bfloat16, or leave out samples that are unlike "
            "the model's training data.",
        )
    jitter = _JITTER * float(system.diagonal().mean()) + torch.finfo(torch.float64).tiny
    factor: Tensor
    failed = 1
    while failed:
        system.diagonal().add_(jitter)
        factor, info = torch.linalg.cholesky_ex(system)
        failed, jitter = int(info), 10 * jitter
    return factor


def ridge_update(factor: Tensor, wanted: Tensor) -> LowRank | Dense:
    """The update wantedᵀ factor, for factor [k, d_in] and wanted [k, d_out]; dense if that is smaller."""
    k, d_in, d_out = *factor.shape, wanted.shape[1]
    if k * (d_in + d_out) < d_in * d_out:
        return LowRank(a=factor.float(), b=wanted.T.float().contiguous())
    return Dense((wanted.double().T @ factor).float())


def ridge_term(
    network: Network,
    prepared: Prepared,
    margin: float,
    strengths: Sequence[float] = STRENGTHS,
    max_rounds: int = MAX_ROUNDS,
) -> tuple[LowRank | Dense, TermScore]:
    """Solve for a term with the strongest penalty on pass inputs that still lets the corrections hold.

    Strengths are tried in order until all corrections hold. The term with the best score is returned.

    Raises:
        EditFailed: no token carries a gradient at this layer.
    """
    nats = margin or MARGIN  # 0 asks for likelihood, but the rounds need a point to stop at
    rows = ridge_rows(network, prepared, nats)
    stop = StopRule(nats, sufficient_margin(prepared, nats / 2), max_rounds)
    found: list[tuple[TermScore, LowRank | Dense]] = []
    for strength in strengths:
        term = _solve(network, rows, ridge_factor(rows.u, prepared.inputs_to_keep, strength), stop)
        found.append((score_term(network, prepared, term, margin), term))
        if found[-1][0].held == 1.0:
            break
    best, term = max(found, key=lambda item: item[0].order)
    return term, best


def ridge_rows(network: Network, prepared: Prepared, margin: float) -> RidgeRows:
    """The rows of all corrections, before any change.

    Raises:
        EditFailed: no token carries a gradient at this layer.
    """
    trunks = tuple(chunk.trunk for chunk in prepared.corrections.chunks)
    gradients = [suffix_gradients(network, trunk, partial(_loss, margin=margin)) for trunk in trunks]
    kept = tuple((item.v != 0).any(-1) & (item.u != 0).any(-1) for item in gradients)
    if not any(bool(mask.any()) for mask in kept):
        raise EditFailed("The edits have no gradient at the chosen layer.", remedy="Choose another layer.")
    starts = accumulate((len(mask) for mask in kept), initial=0)
    owners = [mask.nonzero()[:, 0] + start for mask, start in zip(kept, starts, strict=False)]
    u = torch.cat([item.u[mask].float() for item, mask in zip(gradients, kept, strict=True)])
    return RidgeRows(trunks, kept, torch.cat(owners), u)


def sufficient_margin(prepared: Prepared, most: float) -> float:
    """The margin of a typical pass sample, in nats, at most `most`: a correction needs no larger one.

    In a small classifier, no answer may lead by more than a few nats. Asking more of a correction breaks
    other answers.
    """
    own = [
        margins(Answers(chunk.before, chunk.trunk.batch.targets[mask], mask.nonzero()[:, 0], len(mask)))
        for chunk in prepared.keep.chunks
        if chunk.before is not None
        for mask in [chunk.trunk.batch.answer_mask]
    ]
    return min(most, max(float(torch.cat(own).quantile(TYPICAL)), LEAST_MARGIN)) if own else most


def _solve(network: Network, rows: RidgeRows, factor: Tensor, stop: StopRule) -> LowRank | Dense:
    """Alternate a gradient at the current weights with a line search along it, with one factorization."""
    wanted = torch.zeros(len(rows.u), rows.trunks[0].layer.d_out, device=rows.u.device)
    length = 1.0
    for _ in range(stop.max_rounds):
        now = ridge_step(network, rows, ridge_update(factor, wanted), stop)
        if bool((now.min_margin > stop.sufficient).all()):
            break
        tried = [wanted + length * times * now.step for times in STEP_FACTORS]
        losses = [_total_loss(network, rows, ridge_update(factor, item), stop.margin) for item in tried]
        best = min(range(len(tried)), key=lambda index: losses[index])
        if losses[best] < float(now.loss.sum()):
            wanted, length = tried[best], length * STEP_FACTORS[best] / 2
        else:
            length /= 8
    return ridge_update(factor, wanted)


def ridge_step(network: Network, rows: RidgeRows, term: LowRank | Dense, stop: StopRule) -> RidgeStep:
    """The losses with a term, and the step per sample that brings a linear loss to zero (Polyak 1987).

    A sample with a sufficient margin takes no step.
    """
    losses: list[Tensor] = []
    smallest_margins: list[Tensor] = []
    gradients: list[Tensor] = []

    def recorded_loss(answers: Answers) -> Tensor:
        losses.append(_loss(answers, stop.margin))
        smallest_margins.append(min_margin_per_sample(answers))
        return losses[-1]

    for trunk, mask in zip(rows.trunks, rows.kept, strict=True):
        with adding(network.module(trunk.layer.path), term):
            gradients.append(suffix_gradients(network, trunk, recorded_loss).v[mask].float())
    loss, smallest, v = torch.cat(losses).detach(), torch.cat(smallest_margins).detach(), torch.cat(gradients)
    squares = torch.zeros_like(loss).index_add(0, rows.owners, v.square().sum(-1))
    scale = torch.where(smallest > stop.sufficient, 0.0, loss / squares.clamp(min=1e-20))
    return RidgeStep(loss, smallest, -scale[rows.owners, None] * v)


@torch.no_grad()
def _total_loss(network: Network, rows: RidgeRows, term: LowRank | Dense, margin: float) -> float:
    total = 0.0
    for trunk in rows.trunks:
        with adding(network.module(trunk.layer.path), term):
            total += float(_loss(resume(network, trunk), margin).sum())
    return total


def _loss(answers: Answers, margin: float) -> Tensor:
    return margin_loss_per_sample(answers, margin)
