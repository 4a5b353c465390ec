"""UltraEdit: no training at all; normalized gradients of all edits so far, then one ridge solve.

Gu et al., "UltraEdit: Training-, Subject- and Memory-Free Lifelong Editing in Language Models", 2025,
section 3: rows [u, v] are normalized with mean and deviation over every edit that was ever made (Welford's
update), the wish of a token is -step ‖ũ‖² ṽ, and the weight change solves (UᵀU + λI) S = UᵀV'. Does not
know pass samples: the method has no way to hear of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.baselines.added import Added, earlier, merged
from benchmarks.baselines.contract import Editing
from benchmarks.baselines.malmen import token_rows
from benchmarks.baselines.one_layer import edited_layer, weight_of, with_earlier, writing_stack
from benchmarks.baselines.ridge import ridge_update
from benchmarks.baselines.values import key_tokens
from salem.records import Layer
from worker.activations.trunk_sets import prepare
from worker.hypernetworks.mend import Factors
from worker.training.loop import CHUNK

MAX_ROWS = 8_192  # tokens that take part in the solve
PENALTY = 1e-2  # λ, relative to the mean squared norm of an input


@dataclass(frozen=True)
class Statistics:
    """Mean and spread of rows [u, v] over all edits so far."""

    count: int
    mean: Tensor  # [d_in + d_out]
    squares: Tensor  # [d_in + d_out] sum of squared deviations from the mean

    @property
    def deviation(self) -> Tensor:
        """[d_in + d_out]; a dimension that never moves is left on its own scale."""
        spread = (self.squares / max(self.count, 1)).sqrt()
        return torch.where(spread > 1e-12, spread, torch.ones_like(spread))


@dataclass(frozen=True)
class Lifelong(Added):
    """The edited network, and the statistics that later batches go on from."""

    statistics: Statistics


def ultraedit(editing: Editing) -> Lifelong:
    """One layer, closed form. `setting`: the step, relative to the layer's output."""
    network, layer = editing.network, edited_layer(editing, writing_stack(editing.network))
    with with_earlier(editing):
        corrections = prepare(network, editing.batch.corrections, layer, chunk_size=CHUNK)
        # The authors' tokens are those of the answer; a label's answer is read off all of the text.
        rows = token_rows(network, corrections, MAX_ROWS, key_tokens if network.task.generates else None)
    before = editing.before
    known = before.statistics if isinstance(before, Lifelong) else None
    statistics = updated(known, torch.cat([rows.u, rows.v], dim=-1))
    reach = float((rows.u @ weight_of(network, layer).float().T).square().mean().sqrt())
    wished = wishes(rows, statistics, layer) * editing.setting * reach
    added = merged(network, layer.path, earlier(editing), ridge_update(rows.u, wished, PENALTY))
    return Lifelong(network, added.deltas, statistics)


def wishes(rows: Factors, statistics: Statistics, layer: Layer) -> Tensor:
    """-‖ũ‖² ṽ per token -> [k, d_out], with ‖ũ‖² averaged over its dimensions: one where u is typical."""
    normal = (torch.cat([rows.u, rows.v], dim=-1) - statistics.mean) / statistics.deviation
    u, v = normal[:, : layer.d_in], normal[:, layer.d_in :]
    return -u.square().mean(-1, keepdim=True) * v


def updated(known: Statistics | None, rows: Tensor) -> Statistics:
    """The statistics after more rows [k, d]: Welford's update for a batch (Chan et al. 1979)."""
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
