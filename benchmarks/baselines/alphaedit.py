"""AlphaEdit: a closed form whose update cannot reach the inputs to keep.

Fang et al., "AlphaEdit: Null-Space Constrained Knowledge Editing for Language Models", ICLR 2025, section
3, equation 11: Δ = R K₁ᵀ P (K_p K_pᵀ P + K₁ K₁ᵀ P + λI)⁻¹, with P the projection onto the null space of the
inputs of knowledge to keep (here: the pass samples), K₁ the inputs of the edits, R what their outputs lack,
and K_p the inputs of earlier edits. One layer, where the authors spread R over several. Does not know
editors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.baselines.added import Added, earlier, merged
from benchmarks.baselines.contract import Editing
from benchmarks.baselines.one_layer import edited_layer, pass_samples, with_earlier, writing_stack
from benchmarks.baselines.values import KeyValues, train_values
from worker.activations.trunk_sets import prepare, prepare_with_answers
from worker.training.loop import CHUNK

PENALTY = 1e-2  # λ, relative to the mean squared norm of a key before it is projected


@dataclass(frozen=True)
class Protected(Added):
    """The edited network, and what later batches have to know of it."""

    moment: Tensor  # [d_in, d_in] sum of k kᵀ over the keys of all edits so far
    projection: Tensor  # [d_in, d_in] P, drawn once


def alphaedit(editing: Editing) -> Protected:
    """One layer of the stack that writes. `setting`: the eigenvalue, relative to the largest, below which a
    direction of the pass samples' inputs counts as free.
    """
    network, before = editing.network, editing.before
    layer = edited_layer(editing, writing_stack(network))
    with with_earlier(editing):
        found = train_values(network, prepare(network, editing.batch.corrections, layer, chunk_size=CHUNK))
        if isinstance(before, Protected):
            known, projection = before.moment, before.projection
        else:
            kept = pass_samples(editing)
            _, inputs = prepare_with_answers(network, kept, layer, chunk_size=CHUNK, cache=editing.cache)
            known, projection = torch.zeros_like(inputs), free_projection(inputs, editing.setting)
    update = null_space_update(found, projection, known, PENALTY)
    added = merged(network, layer.path, earlier(editing), update)
    return Protected(network, added.deltas, known + found.keys.T @ found.keys, projection)


def free_projection(moment: Tensor, threshold: float) -> Tensor:
    """P: onto the directions in which inputs with this second moment [d_in, d_in] hardly lie."""
    spent, vectors = torch.linalg.eigh(moment.double())  # ascending eigenvalues
    free = vectors[:, spent < threshold * spent[-1].clamp(min=1e-30)]
    return (free @ free.T).to(moment.dtype)


def null_space_update(found: KeyValues, projection: Tensor, known: Tensor, penalty: float) -> Tensor:
    """Δ of equation 11.

    Args:
        found: keys K₁ᵀ [k, d_in] and shifts Rᵀ [k, d_out].
        projection: [d_in, d_in] P.
        known: [d_in, d_in] K_p K_pᵀ.
        penalty: λ, relative to the mean squared norm of a key before it is projected: as in the authors'
            code it does not shrink with what the projection leaves, so a key that lies among those to keep
            moves little.

    Returns:
        [d_out, d_in]
    """
    p, keys = projection.double(), found.keys.double()
    reached = keys @ p  # [k, d_in]
    added = penalty * keys.square().sum(-1).mean().clamp(min=1e-30)
    system = (known.double() + keys.T @ keys) @ p + added * torch.eye(len(p), dtype=p.dtype, device=p.device)
    right = found.shifts.double().T @ reached  # [d_out, d_in]
    # Rounding leaves a trace outside the null space; the last product takes it away.
    return (torch.linalg.solve(system.T, right.T).T @ p).to(found.keys.dtype)
