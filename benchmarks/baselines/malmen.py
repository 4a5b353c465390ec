"""MALMEN's aggregation: an editor says how each token's output should move, a ridge solve finds the weight.

Tan et al., "Massive Editing for Large Language Models via Meta Learning", ICLR 2024, section 3: a token's
wish is -step (ũ·u) ṽ; the wishes of all edits are fitted at once instead of summed. The editor is trained
through the solve on the job's own samples. Does not know other aggregations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.baselines.added import Added
from benchmarks.baselines.contract import Editing
from benchmarks.baselines.mend import EDITOR_RANK, EDITOR_RATE
from benchmarks.baselines.one_layer import (
    edited_layer,
    generator_of,
    likelihood,
    prepared_at,
    trained,
    with_earlier,
)
from benchmarks.baselines.ridge import ridge_operator
from salem.deltas.terms import Dense, LayerDelta, applied
from salem.models.batching import Batch
from salem.models.network import Network
from salem.models.trunk import resume
from worker.activations.gradients import suffix_gradients
from worker.activations.trunk_sets import TrunkSet
from worker.hypernetworks.mend import Factors, MendEditor
from worker.hypernetworks.meta_training import new_editors, search_steps
from worker.numerics.losses import nll_per_sample

MAX_ROWS = 8_192  # tokens that take part in the solve; of many samples, each brings those that matter most
KL_WEIGHT = 10.0


class RidgeLearner:
    """An editor whose rows are aggregated by a ridge solve."""

    shared = True

    def __init__(self, editor: MendEditor, rows: Factors, penalty: float) -> None:
        self.editor, self.rows = editor, rows
        self.operator = ridge_operator(rows.u, penalty)  # [d_in, k], constant while the editor learns

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.editor.parameters()

    def wishes(self) -> Tensor:
        """How far each token's output should move: -step (ũ·u) ṽ -> [k, d_out]."""
        edited = self.editor(self.rows)
        return (edited.a * self.rows.u).sum(-1, keepdim=True) * edited.b.T

    def term(self) -> Dense:
        return Dense((self.operator @ self.wishes()).T)


def malmen_ridge(editing: Editing) -> Added:
    """One layer, editor and ridge solve. `setting`: λ, relative to the mean squared norm of an input."""
    network, layer = editing.network, edited_layer(editing)
    with with_earlier(editing):
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
    """u and v of the corrections' tokens: of each sample the `most` / n with the largest gradients.

    Args:
        marked: says which tokens of a batch come into question -> [n, t] bool; None: all.
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
