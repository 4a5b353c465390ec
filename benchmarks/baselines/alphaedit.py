"""AlphaEdit: a closed-form update in the null space of the inputs whose outputs must not change.

Fang et al., "AlphaEdit: Null-Space Constrained Knowledge Editing for Language Models", ICLR 2025, section
3, equation 11: Δ = R K₁ᵀ P (K_p K_pᵀ P + K₁ K₁ᵀ P + λI)⁻¹, where P projects onto the null space of
the layer's inputs for knowledge to preserve (here: the pass samples), K₁ holds the inputs of the edits, R the
missing part of their outputs, and K_p the inputs of earlier edits. It edits one layer; the authors spread R
over several. Must not know other methods.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.baselines.hidden_values import KeyValues, train_values
from benchmarks.baselines.interface import Editing
from benchmarks.baselines.one_layer import edited_layer, pass_samples, with_earlier_deltas, writing_stack
from benchmarks.baselines.weight_deltas import NetworkWithDeltas, earlier_deltas, merged
from worker.activations.trunk_sets import prepare, prepare_with_answers
from worker.training.loop import CHUNK

PENALTY = 1e-2  # λ, relative to the mean squared norm of a key before projection


@dataclass(frozen=True)
class AlphaEditResult(NetworkWithDeltas):
    """The edited network, and the state that later batches continue from."""

    moment: Tensor  # [d_in, d_in] sum of k kᵀ over the keys of all edits so far
    projection: Tensor  # [d_in, d_in] P, computed from the first batch


def alphaedit(editing: Editing) -> AlphaEditResult:
    """Edit one layer of the stack that generates the answer.

    `setting`: directions of the pass samples' inputs are free to change if their eigenvalue, relative to the
    largest one, is below this threshold.
    """
    network, before = editing.network, editing.before
    layer = edited_layer(editing, writing_stack(network))
    with with_earlier_deltas(editing):
        found = train_values(network, prepare(network, editing.batch.corrections, layer, chunk_size=CHUNK))
        if isinstance(before, AlphaEditResult):
            known, projection = before.moment, before.projection
        else:
            kept = pass_samples(editing)
            _, inputs = prepare_with_answers(network, kept, layer, chunk_size=CHUNK, cache=editing.cache)
            known, projection = torch.zeros_like(inputs), free_projection(inputs, editing.setting)
    update = null_space_update(found, projection, known, PENALTY)
    added = merged(network, layer.path, earlier_deltas(editing), update)
    return AlphaEditResult(network, added.deltas, known + found.keys.T @ found.keys, projection)


def free_projection(moment: Tensor, threshold: float) -> Tensor:
    """P [d_in, d_in], onto the directions that inputs with this second moment [d_in, d_in] hardly use."""
    eigenvalues, vectors = torch.linalg.eigh(moment.double())  # in ascending order
    free = vectors[:, eigenvalues < threshold * eigenvalues[-1].clamp(min=1e-30)]
    return (free @ free.T).to(moment.dtype)


def null_space_update(found: KeyValues, projection: Tensor, known: Tensor, penalty: float) -> Tensor:
    """Solve equation 11 for Δ.

    Args:
        found: keys K₁ᵀ [k, d_in] and shifts Rᵀ [k, d_out].
        projection: [d_in, d_in] P.
        known: [d_in, d_in] K_p K_pᵀ.
        penalty: λ, relative to the mean squared norm of a key before projection. As in the authors' code, it
            does not shrink with the projected keys, so an edit changes little if its key resembles those of
            preserved knowledge.

    Returns:
        [d_out, d_in]
    """
    p, keys = projection.double(), found.keys.double()
    projected = keys @ p  # [k, d_in]
    added = penalty * keys.square().sum(-1).mean().clamp(min=1e-30)
    system = (known.double() + keys.T @ keys) @ p + added * torch.eye(len(p), dtype=p.dtype, device=p.device)
    right = found.shifts.double().T @ projected  # [d_out, d_in]
    # Rounding leaves a small component outside the null space; the last product removes it.
    return (torch.linalg.solve(system.T, right.T).T @ p).to(found.keys.dtype)
