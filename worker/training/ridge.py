"""The closed form: a delta solved from the rows of the corrections, without training anything.

At the tokens of the corrections the layer is to add something (down the gradient v); of all updates W that
add it, ridge regression takes the one that moves the inputs of pass samples least:

    min_W  sum_rows ||W u - wanted||² + strength tr(W C Wᵀ)   =>   W = wantedᵀ U (UᵀU + strength C)⁻¹

with C the second moment of pass inputs. The solve over all rows at once is MALMEN's (Tan et al., ICLR 2024,
section 4.2), its use without a trained editor UltraEdit's (Gu et al. 2025), the covariance as the price of a
change MEMIT's (Meng et al., ICLR 2023, equation 14). One solve is a linearization; as the solution is linear
in what is wanted, later rounds follow the gradient at the weights so far and reuse the factorization.

Does not know how pass samples were chosen, training, storage or jobs.
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
from salem.records import Hyperparameters
from worker.activations.gradients import suffix_gradients
from worker.numerics.losses import margin_loss_per_sample, margins, min_margin_per_sample
from worker.training.loop import Prepared, TermScore, score_term

STRENGTHS = (1e6, 1e5, 1e4)  # pass tokens that one row of a correction is weighed against (docs/log.md)
LEAST_MARGIN = 0.5
DEFAULT_MARGIN = 6.0  # where the likelihood is asked for: a round needs to know when to stop
MOST_ROUNDS = 12
STEP_FACTORS = (1.0, 4.0)
TYPICAL = 0.25  # quantile of the pass samples' own margins at which a correction counts as holding
_JITTER = 1e-6  # of the mean variance: keeps directions that no input has solvable


@dataclass(frozen=True)
class RidgeRows:
    """The tokens of the corrections that carry a gradient, as rows of one system."""

    trunks: tuple[Trunk, ...]
    kept: tuple[Tensor, ...]  # per trunk [n, t] bool
    owners: Tensor  # [k] the sample of each row, counted over the trunks
    u: Tensor  # [k, d_in]


@dataclass(frozen=True)
class StopRule:
    """When the rounds end."""

    margin: float  # nats, of the loss
    enough: float  # nats by which a correction is to lead; what leads by that is left alone
    most_rounds: int


@dataclass(frozen=True)
class RidgeStep:
    """Where the corrections stand under a term, and which way down is."""

    loss: Tensor  # [n] margin loss per sample
    worst: Tensor  # [n] smallest margin per sample
    step: Tensor  # [k, d_out] what each row is to add, so that a linear loss would fall to zero


def ridge_factor(u: Tensor, moment: Tensor, strength: float) -> Tensor:
    """U (UᵀU + strength C)⁻¹ -> [k, d_in]: times what is wanted of each row, it is the update.

    Args:
        u: [k, d_in] inputs of the layer at the rows.
        moment: [d_in, d_in] C, mean of u uᵀ over tokens of pass samples.
    """
    rows = u.double()
    system = rows.T @ rows + strength * moment.double()
    return torch.cholesky_solve(rows.T, _cholesky(system)).T


def _cholesky(system: Tensor) -> Tensor:
    """The factor of a system; adding up its moment in float32 may have left it slightly negative.

    Raises:
        EditFailed: a number in it is not finite, so that nothing makes it positive.
    """
    if not system.isfinite().all():
        raise EditFailed(
            "The model's states overflow on some of the samples.",
            remedy="Host the weights in a wider type, such as bfloat16, or leave out samples that are unlike "
            "what the model was trained on.",
        )
    jitter = _JITTER * float(system.diagonal().mean()) + torch.finfo(torch.float64).tiny
    factor: Tensor
    failed = 1
    while failed:
        system.diagonal().add_(jitter)
        factor, info = torch.linalg.cholesky_ex(system)
        failed, jitter = int(info), 10 * jitter
    return factor


def ridge_delta(u: Tensor, wanted: Tensor, moment: Tensor, strength: float) -> LowRank | Dense:
    """The update that adds `wanted` [k, d_out] at inputs u [k, d_in] and moves pass inputs least."""
    return _term(ridge_factor(u, moment, strength), wanted)


def _term(factor: Tensor, wanted: Tensor) -> LowRank | Dense:
    """Factors [k, d_in] and wanted [k, d_out] as they are, or multiplied out where that is smaller."""
    k, d_in, d_out = *factor.shape, wanted.shape[1]
    if k * (d_in + d_out) < d_in * d_out:
        return LowRank(a=factor.float(), b=wanted.T.float().contiguous())
    return Dense((wanted.double().T @ factor).float())


def ridge_term(
    network: Network,
    prepared: Prepared,
    hyper: Hyperparameters,
    strengths: Sequence[float] = STRENGTHS,
    most_rounds: int = MOST_ROUNDS,
) -> tuple[LowRank | Dense, TermScore]:
    """Solve for a term that corrects, with the strongest hold on pass inputs that allows it.

    Strengths are tried in order until all corrections hold; of those tried, the one that stands best on the
    corrections, then on the validation part, is returned with its standing.

    Raises:
        EditFailed: no token carries a gradient at this layer.
    """
    margin = hyper.margin or DEFAULT_MARGIN
    rows = ridge_rows(network, prepared, margin)
    goal = StopRule(margin, sufficient_margin(prepared, margin / 2), most_rounds)
    found: list[tuple[TermScore, LowRank | Dense]] = []
    for strength in strengths:
        term = _solve(network, rows, ridge_factor(rows.u, prepared.inputs_to_keep, strength), goal)
        found.append((score_term(network, prepared, term, hyper), term))
        if found[-1][0].held == 1.0:
            break
    best, term = max(found, key=lambda item: item[0].order)
    return term, best


def ridge_rows(network: Network, prepared: Prepared, margin: float) -> RidgeRows:
    """The rows of all corrections before anything is changed.

    Raises:
        EditFailed: no token carries a gradient at this layer.
    """
    trunks = tuple(chunk.trunk for chunk in prepared.corrections.chunks)
    gradients = [suffix_gradients(network, trunk, partial(_loss, margin=margin)) for trunk in trunks]
    kept = tuple((item.v != 0).any(-1) & (item.u != 0).any(-1) for item in gradients)
    if not any(bool(mask.any()) for mask in kept):
        raise EditFailed("The edits leave no gradient at the chosen layer.", remedy="Choose another layer.")
    starts = accumulate((len(mask) for mask in kept), initial=0)
    owners = [mask.nonzero()[:, 0] + start for mask, start in zip(kept, starts, strict=False)]
    u = torch.cat([item.u[mask].float() for item, mask in zip(gradients, kept, strict=True)])
    return RidgeRows(trunks, kept, torch.cat(owners), u)


def sufficient_margin(prepared: Prepared, most: float) -> float:
    """The margin at which a correction holds as the network holds what it knows, and never above `most`.

    The classes of a small classifier may lie so close that no answer leads by more than a few nats: asking
    a correction for more tears at everything else.
    """
    own = [
        margins(Answers(chunk.before, chunk.trunk.batch.targets[asked], asked.nonzero()[:, 0], len(asked)))
        for chunk in prepared.keep.chunks
        if chunk.before is not None
        for asked in [chunk.trunk.batch.answer_mask]
    ]
    return min(most, max(float(torch.cat(own).quantile(TYPICAL)), LEAST_MARGIN)) if own else most


def _solve(network: Network, rows: RidgeRows, factor: Tensor, goal: StopRule) -> LowRank | Dense:
    """Rounds of a gradient at the weights so far and a search along it; the factorization stays."""
    wanted = torch.zeros(len(rows.u), rows.trunks[0].layer.d_out, device=rows.u.device)
    length = 1.0
    for _ in range(goal.most_rounds):
        push = ridge_step(network, rows, _term(factor, wanted), goal)
        if bool((push.worst > goal.enough).all()):
            break
        tried = [wanted + length * times * push.step for times in STEP_FACTORS]
        losses = [_total_loss(network, rows, _term(factor, item), goal.margin) for item in tried]
        best = min(range(len(tried)), key=lambda place: losses[place])
        if losses[best] < float(push.loss.sum()):
            wanted, length = tried[best], length * STEP_FACTORS[best] / 2
        else:
            length /= 8
    return _term(factor, wanted)


def ridge_step(network: Network, rows: RidgeRows, term: LowRank | Dense, goal: StopRule) -> RidgeStep:
    """Losses under a term, and the step of each sample that would bring a linear loss to zero (Polyak 1987).

    A sample that leads by enough asks for nothing more.
    """
    losses: list[Tensor] = []
    worst: list[Tensor] = []
    gradients: list[Tensor] = []

    def noting(answers: Answers) -> Tensor:
        losses.append(_loss(answers, goal.margin))
        worst.append(min_margin_per_sample(answers))
        return losses[-1]

    for trunk, mask in zip(rows.trunks, rows.kept, strict=True):
        with adding(network.module(trunk.layer.path), term):
            gradients.append(suffix_gradients(network, trunk, noting).v[mask].float())
    loss, smallest, v = torch.cat(losses).detach(), torch.cat(worst).detach(), torch.cat(gradients)
    squares = torch.zeros_like(loss).index_add(0, rows.owners, v.square().sum(-1))
    scale = torch.where(smallest > goal.enough, 0.0, loss / squares.clamp(min=1e-20))
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
