"""MEND as a learner: trains an editor on the gradients of one job's corrections.

Mitchell et al., ICLR 2022, section 3. `worker.training.loop` runs the training. Must not know recipes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from pydantic import Field
from torch import nn

from salem.deltas.terms import Dense, LowRank
from salem.errors import EditFailed
from salem.models.network import Network
from worker.activations.gradients import suffix_gradients
from worker.activations.trunk_sets import TrunkSet
from worker.hypernetworks.mend import Factors, MendEditor, aggregate
from worker.numerics.null_space import NullSpace, null_space
from worker.training.loop import Prepared, edit_loss
from worker.training.options import LoopOptions, TrainingOptions

SMALLEST_STEP = 1e-3  # of the weight's norm: where the search for MEND's first step size starts
LARGEST_DOUBLINGS = 10


class EditorTraining(LoopOptions):
    """How to train an editor for one job."""

    gradient_batch: int = Field(
        default=10,
        ge=1,
        le=1_000,
        description="Samples whose gradients are added up before their low-rank form is taken",
    )
    editor_rank: int = Field(default=64, ge=1, le=1_024, description="Rank of the editor's blocks")


class MendTraining(TrainingOptions, EditorTraining):
    """The same, with a margin and with a projection away from the inputs of pass samples."""

    null_space_rank: int = Field(
        default=200,
        ge=0,
        le=4_096,
        description="Leading directions of pass samples' inputs that the change must not touch. 0 turns "
        "this off",
    )


class MendLearner:
    """MEND on the job's own gradients: fixed factors in, a projected term out."""

    shared = True

    def __init__(self, editor: MendEditor, factors: Factors, projection: NullSpace) -> None:
        self.editor, self.factors, self.projection = editor, factors, projection

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.editor.parameters()

    def rows(self) -> LowRank:
        """The update with one rank per factor, in order."""
        return self.projection.project(self.editor(self.factors))

    def term(self) -> LowRank | Dense:
        """The update as factors, or as a matrix if that is smaller."""
        factors = self.rows()
        costly = (
            factors.rank * (factors.a.shape[1] + factors.b.shape[0]) > factors.a.shape[1] * factors.b.shape[0]
        )
        return Dense(factors.dense()) if costly else factors


def gradient_factors(network: Network, corrections: TrunkSet, batch_size: int) -> Factors:
    """The gradients of the corrections: the low-rank form of each batch of `batch_size` samples.

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
    """The factors of all parts, in order.

    Raises:
        EditFailed: there are none.
    """
    if not any(len(part.u) for part in parts):
        raise EditFailed("The edits leave no gradient at the chosen layer.", remedy="Choose another layer.")
    return Factors(u=torch.cat([part.u for part in parts]), v=torch.cat([part.v for part in parts]))


def mend_learner(
    network: Network,
    prepared: Prepared,
    options: MendTraining,
    generator: torch.Generator,
    factors: Factors | None = None,
) -> MendLearner:
    """A new editor, with the step size that suits plain gradient descent best.

    Args:
        factors: the gradients of the corrections; by default, the low-rank form of each batch.
    """
    factors = factors or gradient_factors(network, prepared.corrections, options.gradient_batch)
    layer = prepared.layer
    editor = MendEditor(layer.d_in, layer.d_out, options.editor_rank, generator).to(network.device)
    editor.fit_normalizer(factors)
    learner = MendLearner(editor, factors, null_space(prepared.inputs_to_keep, options.null_space_rank))
    _search_step(network, prepared, learner, options.margin)
    return learner


@torch.no_grad()
def _search_step(network: Network, prepared: Prepared, learner: MendLearner, margin: float) -> None:
    """Set the step size to the best of a geometric grid, which starts at a small relative change."""
    weight = network.weight(prepared.layer.path)
    size = learner.term().dense().norm().clamp(min=1e-12)
    smallest = float((weight.float().norm() * SMALLEST_STEP / size).log())
    losses: dict[float, float] = {}
    for doublings in range(0, LARGEST_DOUBLINGS + 1, 2):
        log_step = smallest + doublings * 0.6931
        learner.editor.log_step.fill_(log_step)
        losses[log_step] = float(edit_loss(network, prepared.corrections.chunks[0], learner.term(), margin))
    learner.editor.log_step.fill_(min(losses, key=lambda log_step: losses[log_step]))
