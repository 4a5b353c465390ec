"""LoRA fine-tuning with the `peft` library, on every matrix of every block.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, section 4: W + (alpha / r) B A,
where A starts random and B starts at zero. peft inserts adapters into the network for training; afterward
they become low-rank deltas. Must not use pass samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from torch import nn
from transformers.pytorch_utils import Conv1D

from benchmarks.baselines.interface import Editing
from benchmarks.baselines.multi_layer_training import fit
from benchmarks.baselines.one_layer import generator_of, prepared_at
from benchmarks.baselines.weight_deltas import NetworkWithDeltas, first_batch_only
from salem.deltas.terms import LayerDelta, LowRank
from salem.models.layers import find_stacks
from salem.models.network import Network

RANK = 8
ALPHA = 16
ADAPTER = "edit"


@dataclass(frozen=True)
class Adapters:
    """peft's modules by path, while they are in the network."""

    modules: dict[str, nn.Module]

    def parameters(self) -> Iterator[nn.Parameter]:
        for module in self.modules.values():
            yield module.lora_A[ADAPTER].weight
            yield module.lora_B[ADAPTER].weight

    def acting(self) -> AbstractContextManager[object]:
        return nullcontext()  # peft's modules are already in the network

    def state(self) -> tuple[LayerDelta, ...]:
        return tuple(
            LayerDelta(
                path,
                (
                    LowRank(
                        a=module.lora_A[ADAPTER].weight.detach().clone(),
                        b=module.scaling[ADAPTER] * module.lora_B[ADAPTER].weight.detach(),
                    ),
                ),
            )
            for path, module in self.modules.items()
        )


def block_matrices(network: Network) -> list[str]:
    """Paths of all attention and feed-forward matrices in all blocks."""
    return [
        f"{stack}.{path}"
        for stack, blocks in find_stacks(network.model).items()
        for path, module in blocks.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    ]


@contextmanager
def lora_adapters(network: Network, generator: torch.Generator) -> Iterator[Adapters]:
    """While active, the network has peft's adapters of rank `RANK`, initialized from the generator."""
    paths = block_matrices(network)
    conv = isinstance(network.module(paths[0]), Conv1D)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=paths, fan_in_fan_out=conv)
    # peft draws A from the global generator. Restore that generator, and draw A from ours.
    with torch.random.fork_rng():
        tuner = LoraModel(network.model, config, ADAPTER)
    try:
        modules = {path: network.module(path) for path in paths}
        with torch.no_grad():
            for module in modules.values():
                first = module.lora_A[ADAPTER].weight
                first.copy_((2 * torch.rand(first.shape, generator=generator) - 1) * first.shape[1] ** -0.5)
        yield Adapters(modules)
    finally:
        tuner.unload()
        network.model.requires_grad_(False)


def lora(editing: Editing) -> NetworkWithDeltas:
    """Train adapters of all block matrices on the corrections only. `setting`: the learning rate."""
    first_batch_only(editing)
    network, generator = editing.network, generator_of(editing)
    prepared = prepared_at(editing, network.layers[0], keep=False)
    with lora_adapters(network, generator) as adapters:
        best = fit(
            network,
            prepared,
            adapters,
            learning_rate=editing.setting,
            kl_weight=0.0,
            generator=generator,
        )
    return NetworkWithDeltas(network, best)
