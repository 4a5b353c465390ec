"""MALMEN: an editor predicts how each token's output should change, and a ridge solve fits the weight update.

Tan et al., "Massive Editing for Large Language Models via Meta Learning", ICLR 2024, section 3: the
wanted shift of a token's output is -step (ũ·u) ṽ. One solve fits the shifts of all edits, where MEND sums
updates. The editor is trained through the solve, on the job's own samples. Must not know other methods'
aggregation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.baselines.interface import Editing
from benchmarks.baselines.mend import EDITOR_RANK, EDITOR_RATE
from benchmarks.baselines.one_layer import (
    edited_layer,
    generator_of,
    likelihood,
    prepared_at,
    trained,
    with_earlier_deltas,
)
from benchmarks.baselines.ridge import ridge_operator
from benchmarks.baselines.weight_deltas import NetworkWithDeltas
from salem.deltas.terms import Dense, LayerDelta, applied
from salem.models.batching import Batch
from salem.models.network import Network
from salem.models.trunk import resume
from worker.activations.gradients import suffix_gradients
from worker.activations.trunk_sets import TrunkSet
from worker.hypernetworks.mend import Factors, MendEditor
from worker.hypernetworks.meta_training import new_editors, search_steps
from worker.numerics.losses import nll_per_sample

MAX_ROWS = (
    8_192  # maximum number of tokens in the solve; each sample contributes those with the largest gradients
)
KL_WEIGHT = 10.0


class RidgeLearner:
    """An editor whose token updates are combined by a ridge solve."""

    shared = True

    def __init__(self, editor: MendEditor, rows: Factors, penalty: float) -> None:
        self.editor, self.rows = editor, rows
        self.operator = ridge_operator(rows.u, penalty)  # [d_in, k], constant during training

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.editor.parameters()

    def wanted_shifts(self) -> Tensor:
        """How much each token's output should change: -step (ũ·u) ṽ -> [k, d_out]."""
        edited = self.editor(self.rows)
        return (edited.a * self.rows.u).sum(-1, keepdim=True) * edited.b.T

    def term(self) -> Dense:
        return Dense((self.operator @ self.wanted_shifts()).T)


def malmen_ridge(editing: Editing) -> NetworkWithDeltas:
    """Edit one layer by an editor and a ridge solve. `setting`: λ over the mean squared norm of an input."""
    network, layer = editing.network, edited_layer(editing)
    with with_earlier_deltas(editing):
        prepared = prepared_at(editing, layer)
        rows = token_rows(network, prepared.corrections, MAX_ROWS)
        editors = new_editors(network, [layer], {layer.path: rows}, EDITOR_RANK, generator_of(editing))
        learner = RidgeLearner(editors[layer.path], rows, editing.setting)

        def delta() -> list[LayerDelta]:
            return [LayerDelta(layer.path, (learner.term(),))]

        def loss() -> float:
            with applied(network.model, delta()):
                return float(nll_per_sample(resume(network, prepared.corrections.chunks[0].trunk)).mean())

        search_steps(network, [layer], editors, delta, loss)
        return trained(editing, prepared, learner, likelihood(kl_weight=KL_WEIGHT, learning_rate=EDITOR_RATE))


def token_rows(
    network: Network,
    corrections: TrunkSet,
    most: int,
    marked: Callable[[Network, Batch], Tensor] | None = None,
) -> Factors:
    """Inputs u and output gradients v of the corrections' tokens.

    Of each of the n samples, it takes the `most` / n tokens with the largest gradients.

    Args:
        most: maximum number of tokens in total.
        marked: returns the tokens of a batch to choose from [n, t] bool; None means all.

    Returns:
        u [k, d_in] and v [k, d_out].
    """
    per_sample = max(1, most // corrections.num_samples)
    parts: list[tuple[Tensor, Tensor]] = []
    for chunk in corrections.chunks:
        gradients = suffix_gradients(network, chunk.trunk)
        norms = gradients.v.norm(dim=-1)  # [n, t]
        if marked is not None:
            norms = norms * marked(network, chunk.trunk.batch)
        chosen = norms.topk(min(per_sample, norms.shape[1]), dim=-1).indices.unsqueeze(-1)
        u, v = (one.gather(1, chosen.expand(-1, -1, one.shape[-1])) for one in (gradients.u, gradients.v))
        carries = norms.gather(1, chosen.squeeze(-1)) > 0
        parts.append((u[carries].float(), v[carries].float()))
    return Factors(torch.cat([u for u, _ in parts]), torch.cat([v for _, v in parts]))
