"""Values of entries without a training loop: a direction for each, and how far along it the edit holds.

`closed_form`: a value that lowers the linearized loss most for its length: minus the loss gradient, as the
ridge solution is for one step. `editor`: where a MEND editor that was trained on the job moves the layer's
output at the edit's own tokens (the pseudo-gradients of Mitchell et al., ICLR 2022, section 3.1). Both are
there to be compared with values that are trained. Does not know how scopes are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salem.deltas.terms import LowRank, Scoped
from salem.models.network import Network
from worker.activations.gradients import suffix_gradients
from worker.activations.trunk_sets import Chunk
from worker.hypernetworks.learners import MendLearner, joined, mend_learner
from worker.hypernetworks.mend import Factors
from worker.recipes.base import Work
from worker.training.loop import Prepared, edit_loss, states_with_term
from worker.training.micro_batches import MicroBatches, WeightedLoss

SIZES = tuple(2.0**power for power in range(-2, 7))  # of a value, in units of the state's scale


def closed_form(work: Work, prepared: Prepared, start: Scoped) -> Tensor:
    """Minus the gradient of the corrections' loss with respect to each value -> [e, p, d_out]."""
    values = nn.Parameter(start.values.clone())
    loss = partial(edit_loss, work.network, hyper=work.hyper)
    shares = [WeightedLoss(chunk, len(chunk), loss) for chunk in prepared.corrections.chunks]
    (gradient,) = MicroBatches().gradients(shares, lambda: replace(start, values=values), [values])
    return -gradient


def editor_direction(work: Work, prepared: Prepared, start: Scoped) -> Tensor:
    """The sum of a trained editor's output moves at the tokens of each answer position -> [e, p, d_out].

    The editor is trained on rows of single tokens: a sum over tokens says no longer where it moves what.
    """
    whole = work.prepare()
    parts = [part for chunk in whole.corrections.chunks for part in _token_rows(work, chunk, start)]
    factors = joined([factors for factors, _ in parts])
    learner = mend_learner(work.network, whole, work.hyper, work.generator, factors)
    found = work.fit(whole, TokenLearner(learner.editor, learner.factors, learner.projection))
    assert isinstance(found, LowRank), "one row per token"
    chosen = F.one_hot(torch.cat([slots for _, slots in parts]), start.values.shape[:2].numel())
    return (chosen.T.to(found.b.dtype) @ found.b.T).reshape(start.values.shape)


class TokenLearner(MendLearner):
    """MEND with a row for every token, never multiplied out."""

    def term(self) -> LowRank:
        return self.rows()


def _token_rows(work: Work, chunk: Chunk, start: Scoped) -> Iterator[tuple[Factors, Tensor]]:
    """The tokens that carry a gradient, k rows, and of each the value that acts there [k]: its number among
    all values of all entries.
    """
    num_positions = start.values.shape[1]
    owners = torch.tensor(work.batch.owners, device=work.network.device)
    for rows in torch.arange(len(chunk)).split(work.hyper.gradient_batch):  # type: ignore[no-untyped-call]
        part = chunk.rows(rows)
        found = suffix_gradients(work.network, part.trunk)
        u, v = found.token_rows()
        samples, columns = found.token_places().T
        starts = part.trunk.batch.answer_starts.to(columns.device)
        positions = (columns - starts[samples]).clamp(min=0, max=num_positions - 1)
        entries = owners[part.samples.to(owners.device)[samples]]
        yield Factors(u.float(), v.float()), entries * num_positions + positions


@torch.no_grad()
def along(
    network: Network, prepared: Prepared, start: Scoped, direction: Tensor, scale: float, margin: float
) -> Scoped:
    """The entries with values along directions [e, p, d_out], each as short as its corrections hold with the
    margin; where none does, as long as they come nearest to it.
    """
    length = direction.square().mean(-1).sqrt().amax(-1)[:, None, None]  # of the longest position
    unit = scale * direction / length.clamp(min=torch.finfo(direction.dtype).tiny)
    worst = torch.stack([_worst(network, prepared, replace(start, values=size * unit)) for size in SIZES])
    holding = worst >= margin
    first = torch.where(holding.any(0), holding.int().argmax(0), worst.argmax(0))  # [e]
    sizes = torch.tensor(SIZES, device=unit.device)[first]
    return replace(start, values=sizes[:, None, None] * unit)


def _worst(network: Network, prepared: Prepared, term: Scoped) -> Tensor:
    """The smallest margin among the corrections of each entry that were asked for -> [e]."""
    there = states_with_term(network, prepared.corrections, term).min_margin
    there[prepared.num_own_corrections :] = float("inf")
    worst = there.new_full((len(term.values),), float("inf"))
    for chunk in prepared.corrections.chunks:
        assert chunk.firing is not None
        worst = worst.scatter_reduce(0, chunk.firing.entry, there[chunk.samples], reduce="amin")
    return worst


Direction = Callable[[Work, Prepared, Scoped], Tensor]
DIRECTIONS: Mapping[str, Direction] = {"closed_form": closed_form, "editor": editor_direction}
