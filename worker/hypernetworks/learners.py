"""What can be trained into a term: MEND on the job's gradients, or one entry per edit inside its scope.

A learner has parameters and yields a term; the loop in `worker.training.loop` does the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from salem.deltas.terms import Dense, LowRank, Scoped
from salem.errors import EditFailed
from salem.models.network import Network
from salem.records import Hyperparameters, Layer
from salem.scope.scope import Scope
from worker.activations.gradients import suffix_gradients
from worker.activations.trunk_sets import TrunkSet
from worker.hypernetworks.mend import Factors, MendEditor, aggregate
from worker.numerics.null_space import NullSpace, null_space
from worker.training.loop import Prepared, edit_loss

SMALLEST_STEP = 1e-3  # of the weight's norm: where the search for MEND's first step size starts
LARGEST_DOUBLINGS = 10


class MendLearner:
    """MEND on the job's own gradients: fixed factors in, a projected term out."""

    learning_rate = 1e-3
    kl_weight = 3.0
    shared = True

    def __init__(self, editor: MendEditor, factors: Factors, projection: NullSpace) -> None:
        self.editor, self.factors, self.projection = editor, factors, projection

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.editor.parameters()

    def rows(self) -> LowRank:
        """The update with a rank for each of its factors, in their order."""
        return self.projection.project(self.editor(self.factors))

    def term(self) -> LowRank | Dense:
        """Factors of a rank that costs more than the whole matrix are multiplied out."""
        factors = self.rows()
        costly = (
            factors.rank * (factors.a.shape[1] + factors.b.shape[0]) > factors.a.shape[1] * factors.b.shape[0]
        )
        return Dense(factors.dense()) if costly else factors


class ScopedLearner:
    """A value per entry and answer position and, for entries that need one, a rank-r term beside them; the
    scope is fixed.

    A value serves a paraphrase that training never saw; a term that reads tokens fits those of the edit. It
    is needed where a layer that does not write the answer is to hold several tokens of it.
    """

    learning_rate = 0.2  # values are in units of the residual stream
    kl_weight = 0.0  # the scope says what stays; inside it the correction counts
    shared = False  # a value is its edit's own

    def __init__(
        self,
        start: Scoped,
        *,
        rank: int,
        needed: Tensor,  # [e] bool: entries that have a rank-r term
        scale: float,
        generator: torch.Generator,
    ) -> None:
        (e, _, d_out), d_in = start.values.shape, start.down.shape[-1]
        device = start.values.device
        down = torch.randn(e, rank, d_in, generator=generator) / d_in**0.5
        self.start, self.scale = start, scale
        self.needed = needed.to(device)[:, None, None]
        self.values = nn.Parameter(start.values / scale)
        self.down = nn.Parameter(down.to(device))
        self.up = nn.Parameter(torch.zeros(e, rank, d_out, device=device))

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter((self.values, self.down, self.up) if self.up.numel() else (self.values,))

    def term(self) -> Scoped:
        """Values are trained in units of `scale`, so that one learning rate serves models of any width."""
        return replace(
            self.start,
            values=self.values * self.scale,
            down=self.down * self.needed,
            up=self.up * self.needed * self.scale,
        )


def empty_entries(scope: Scope, num_entries: int, layer: Layer, num_positions: int = 1) -> Scoped:
    """Entries that add nothing yet, with a value for each of so many answer positions."""
    new = scope.keys.new_zeros
    return Scoped(
        scope,
        values=new(num_entries, num_positions, layer.d_out),
        down=new(num_entries, 0, layer.d_in),
        up=new(num_entries, 0, layer.d_out),
    )


def gradient_factors(network: Network, corrections: TrunkSet, batch_size: int) -> Factors:
    """Gradients of the corrections, added up in batches of `batch_size`, each batch in its low-rank form.

    Raises:
        EditFailed: no token carries a gradient at this layer.
    """
    parts: list[Factors] = []
    for chunk in corrections.chunks:
        for rows in torch.split(torch.arange(len(chunk.samples)), batch_size):
            u, v = suffix_gradients(network, chunk.trunk.rows(rows)).token_rows()
            if len(u):
                parts.append(aggregate(u.float(), v.float()))
    return joined(parts)


def joined(parts: Sequence[Factors]) -> Factors:
    """The factors of all parts, in their order.

    Raises:
        EditFailed: there are none.
    """
    if not any(len(part.u) for part in parts):
        raise EditFailed("The edits leave no gradient at the chosen layer.", remedy="Choose another layer.")
    return Factors(u=torch.cat([part.u for part in parts]), v=torch.cat([part.v for part in parts]))


def mend_learner(
    network: Network,
    prepared: Prepared,
    hyper: Hyperparameters,
    generator: torch.Generator,
    factors: Factors | None = None,
) -> MendLearner:
    """An editor at its start, with its step size set by a search along plain gradient descent.

    Args:
        factors: the gradients of the corrections; left out, added up in batches and in their low-rank form.
    """
    factors = factors or gradient_factors(network, prepared.corrections, hyper.gradient_batch)
    layer = prepared.layer
    editor = MendEditor(layer.d_in, layer.d_out, hyper.editor_rank, generator).to(network.device)
    editor.fit_normalizer(factors)
    learner = MendLearner(editor, factors, null_space(prepared.inputs_to_keep, hyper.null_space_rank))
    _search_step(network, prepared, learner, hyper)
    return learner


@torch.no_grad()
def _search_step(network: Network, prepared: Prepared, learner: MendLearner, hyper: Hyperparameters) -> None:
    """Set the step size to the best of a geometric grid; it starts at a small relative change."""
    weight = network.weight(prepared.layer.path)
    size = learner.term().dense().norm().clamp(min=1e-12)
    smallest = float((weight.float().norm() * SMALLEST_STEP / size).log())
    losses: dict[float, float] = {}
    for doublings in range(0, LARGEST_DOUBLINGS + 1, 2):
        log_step = smallest + doublings * 0.6931
        learner.editor.log_step.fill_(log_step)
        losses[log_step] = float(edit_loss(network, prepared.corrections.chunks[0], learner.term(), hyper))
    learner.editor.log_step.fill_(min(losses, key=lambda log_step: losses[log_step]))
