"""Trains hidden values: what a layer should output at a sample's key tokens to make the answer correct.

Meng et al., "Locating and Editing Factual Associations in GPT" (ROME), NeurIPS 2022, section 3.1: gradient
steps find a vector to add to the layer's output at the key token. The subject of a prompt is unknown here, so
the key tokens are those that the answer is read from, each with its own vector: [CLS] of a classifier; the
prompt's last token and the answer's tokens of a generator. Must not know how a method edits the layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from salem.deltas.terms import adding
from salem.models.batching import Batch
from salem.models.network import Network
from salem.models.trunk import Trunk, resume
from worker.activations.trunk_sets import TrunkSet
from worker.numerics.losses import min_margin_per_sample, nll_per_sample

NUM_VALUE_STEPS = 25
VALUE_RATE = 0.2  # learning rate of Adam, in units of the root mean square of the layer's output
VALUE_DECAY = 0.02  # penalty on the squared vector, in the same units
STOP_MARGIN = 2.0  # nats; training stops when every answer of a chunk leads by this much


@dataclass(frozen=True)
class KeyValues:
    """The layer's inputs at key tokens, and how much its outputs there should change."""

    keys: Tensor  # [k, d_in]
    shifts: Tensor  # [k, d_out]


def key_token_mask(network: Network, batch: Batch) -> Tensor:
    """The tokens that the answer is read from, in the stack that generates it -> [n, t] bool."""
    if network.task.generates:
        return batch.answer_mask
    first = torch.zeros_like(batch.inputs["attention_mask"], dtype=torch.bool)
    first[:, 0] = True
    return first


def train_values(network: Network, corrections: TrunkSet) -> KeyValues:
    """The keys and trained shifts of all samples. Each sample is trained independently of the others."""
    parts = [_train_chunk(network, chunk.trunk) for chunk in corrections.chunks]
    return KeyValues(torch.cat([one.keys for one in parts]), torch.cat([one.shifts for one in parts]))


def _train_chunk(network: Network, trunk: Trunk) -> KeyValues:
    x, y = layer_input_and_output(network, trunk)
    mask = key_token_mask(network, trunk.batch)
    unit = float(y[mask].square().mean().sqrt())
    shifts = nn.Parameter(torch.zeros(int(mask.sum()), y.shape[-1], device=y.device))
    optimizer = torch.optim.Adam([shifts], lr=VALUE_RATE)

    def added_output(inputs: Tensor) -> Tensor:
        placed = y.new_zeros(y.shape).index_put(tuple(mask.nonzero().T), shifts * unit)
        return placed.reshape(*inputs.shape[:-1], -1)

    for _ in range(NUM_VALUE_STEPS):
        optimizer.zero_grad(set_to_none=True)
        with adding(network.module(trunk.layer.path), added_output):
            answers = resume(network, trunk)
        if float(min_margin_per_sample(answers).detach().min()) > STOP_MARGIN:
            break
        loss = nll_per_sample(answers).sum() + VALUE_DECAY * shifts.square().mean(-1).sum()
        loss.backward()
        optimizer.step()
    return KeyValues(x[mask].float(), (shifts * unit).detach())


@torch.no_grad()
def layer_input_and_output(network: Network, trunk: Trunk) -> tuple[Tensor, Tensor]:
    """The layer's input and output for a captured batch -> [n, t, d_in], [n, t, d_out]."""
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((args[0], output))

    handle = network.module(trunk.layer.path).register_forward_hook(keep)
    try:
        resume(network, trunk)
    finally:
        handle.remove()
    n = len(trunk.batch)
    x, y = seen[0]
    return x.reshape(n, -1, x.shape[-1]), y.reshape(n, -1, y.shape[-1])
