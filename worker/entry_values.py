"""Values of entries without a training loop: a direction for each, and how far along it the edit holds.

`closed_form`: a value that lowers the linearised loss most for its length: minus the loss gradient, as the
ridge solution is for one step. `editor`: where a MEND editor that was trained on the job moves the layer's
output at the edit's own tokens (the pseudo-gradients of Mitchell et al., ICLR 2022, section 3.1). Both are
comparisons to values that are trained, and need no step of their own. Does not know scopes or budgets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from salem.hosting import Network
from salem.scopes import Scoped
from worker.editor import Factors, MendEditor
from worker.gradients import suffix_gradients
from worker.learners import mend_learner
from worker.losses import correction_loss_per_sample
from worker.training import Prepared, answers_under, reached
from worker.trunk_sets import Chunk
from worker.work import Work

SIZES = tuple(2.0**power for power in range(-2, 7))  # of a value, in units of the state's scale


def closed_form(work: Work, prepared: Prepared, start: Scoped) -> Tensor:
    """Minus the gradient of the corrections' loss with respect to each value -> [e, p, d_out]."""
    values = start.values.clone().requires_grad_()
    term = replace(start, values=values)
    total = torch.zeros_like(values)
    for chunk in prepared.corrections.chunks:
        answers = answers_under(work.network, chunk, term)
        loss = correction_loss_per_sample(answers, chunk.before, work.hyper.margin).sum()
        total -= torch.autograd.grad(loss, values)[0]
    return total


def editor_direction(work: Work, prepared: Prepared, start: Scoped) -> Tensor:
    """The sum of a trained editor's output moves at the tokens of each answer position -> [e, p, d_out]."""
    whole = work.prepare()
    learner = mend_learner(work.network, whole, work.hyper, work.generator)
    work.fit(whole, learner)
    parts = [_moves(work.network, learner.editor, chunk, start) for chunk in prepared.corrections.chunks]
    return torch.stack(parts).sum(0)


def _moves(network: Network, editor: MendEditor, chunk: Chunk, start: Scoped) -> Tensor:
    """What an editor makes of the gradients at a chunk's tokens, by entry and position -> [e, p, d_out].

    Its rows are an edit's direction times what enters the layer there; the direction alone is taken.
    """
    assert chunk.firing is not None and chunk.firing.starts is not None, "corrections fire on their entries"
    found = suffix_gradients(network, chunk.trunk)
    u, v = found.token_rows()
    total = torch.zeros_like(start.values)
    if len(u):
        rows, columns = found.token_places().T
        last = start.values.shape[1] - 1
        positions = (columns - chunk.firing.starts.to(columns.device)[rows]).clamp(min=0, max=last)
        with torch.no_grad():
            moves = editor(Factors(u.float(), v.float())).b.T  # [k, d_out]
        total.index_put_((chunk.firing.entry[rows], positions), moves, accumulate=True)
    return total


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
    """The smallest margin among the corrections of each entry -> [e]."""
    there = reached(network, prepared.corrections, term).worst
    worst = there.new_full((len(term.values),), float("inf"))
    for chunk in prepared.corrections.chunks:
        assert chunk.firing is not None
        worst = worst.scatter_reduce(0, chunk.firing.entry, there[chunk.samples], reduce="amin")
    return worst


Direction = Callable[[Work, Prepared, Scoped], Tensor]
DIRECTIONS: Mapping[str, Direction] = {"closed_form": closed_form, "editor": editor_direction}
