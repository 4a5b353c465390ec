"""UltraEdit: normalizes the gradients of the edits and solves one ridge system, without training.

Gu et al., "UltraEdit: Training-, Subject- and Memory-Free Lifelong Editing in Language Models", 2025,
section 3: rows [u, v] are normalized by their mean and deviation over all edits so far (Welford's update).
The wanted shift of a token's output is -step ‖ũ‖² ṽ, and the weight update solves (UᵀU + λI) S = UᵀV'. Must
not use pass samples, because the published method does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.baselines.hidden_values import key_token_mask
from benchmarks.baselines.interface import Editing
from benchmarks.baselines.malmen import token_rows
from benchmarks.baselines.one_layer import edited_layer, weight_of, with_earlier_deltas, writing_stack
from benchmarks.baselines.ridge import ridge_update
from benchmarks.baselines.weight_deltas import NetworkWithDeltas, earlier_deltas, merged
from salem.records import Layer
from worker.activations.trunk_sets import prepare
from worker.hypernetworks.mend import Factors
from worker.training.loop import CHUNK

MAX_ROWS = 8_192  # maximum number of tokens in the solve
PENALTY = 1e-2  # λ, relative to the mean squared norm of an input


@dataclass(frozen=True)
class Statistics:
    """Running mean and deviation of the rows [u, v] of all edits so far."""

    count: int
    mean: Tensor  # [d_in + d_out]
    squares: Tensor  # [d_in + d_out] sum of squared deviations from the mean

    @property
    def deviation(self) -> Tensor:
        """The standard deviation [d_in + d_out]; 1 for constant dimensions."""
        spread = (self.squares / max(self.count, 1)).sqrt()
        return torch.where(spread > 1e-12, spread, torch.ones_like(spread))


@dataclass(frozen=True)
class UltraEditResult(NetworkWithDeltas):
    """The edited network, and the statistics that later batches continue from."""

    statistics: Statistics


def ultraedit(editing: Editing) -> UltraEditResult:
    """Edit one layer in closed form. `setting`: the step, relative to the layer's output."""
    network, layer = editing.network, edited_layer(editing, writing_stack(editing.network))
    with with_earlier_deltas(editing):
        corrections = prepare(network, editing.batch.corrections, layer, chunk_size=CHUNK)
        # The authors use the tokens of the answer. A classifier reads its label from the whole text.
        rows = token_rows(network, corrections, MAX_ROWS, key_token_mask if network.task.generates else None)
    before = editing.before
    known = before.statistics if isinstance(before, UltraEditResult) else None
    statistics = merged_statistics(known, torch.cat([rows.u, rows.v], dim=-1))
    output_scale = float((rows.u @ weight_of(network, layer).float().T).square().mean().sqrt())
    shifts = wanted_shifts(rows, statistics, layer) * editing.setting * output_scale
    added = merged(network, layer.path, earlier_deltas(editing), ridge_update(rows.u, shifts, PENALTY))
    return UltraEditResult(network, added.deltas, statistics)


def wanted_shifts(rows: Factors, statistics: Statistics, layer: Layer) -> Tensor:
    """-‖ũ‖² ṽ per token -> [k, d_out]. ‖ũ‖² is averaged over dimensions, so it is 1 for a typical u."""
    normal = (torch.cat([rows.u, rows.v], dim=-1) - statistics.mean) / statistics.deviation
    u, v = normal[:, : layer.d_in], normal[:, layer.d_in :]
    return -u.square().mean(-1, keepdim=True) * v


def merged_statistics(known: Statistics | None, rows: Tensor) -> Statistics:
    """The statistics with more rows [k, d] added: Welford's update for a batch (Chan et al. 1979)."""
    mean, count = rows.mean(0), len(rows)
    squares = (rows - mean).square().sum(0)
    if known is None:
        return Statistics(count, mean, squares)
    total, shift = known.count + count, mean - known.mean
    return Statistics(
        total,
        known.mean + shift * count / total,
        known.squares + squares + shift.square() * known.count * count / total,
    )
