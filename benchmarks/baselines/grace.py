"""GRACE: a codebook at one layer. Near a known edit, the edit's value replaces the layer's output.

Hartvigsen et al., "Aging with GRACE: Lifelong Model Editing with Discrete Key-Value Adaptors", NeurIPS
2023. The key is the layer's input at the key token: [CLS] of a classifier, the last prompt token of a
generator. The value is trained by gradient steps and replaces the layer's output, at [CLS] or at all prompt
tokens. The codebook is searched once per prompt, and the entry applies to the whole answer. Must not know how
the codebook adds entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baselines.codebook import Codebook, empty_codebook
from benchmarks.baselines.interface import Editing
from benchmarks.baselines.one_layer import edited_layer, pass_samples, reading_stack
from benchmarks.baselines.prompt_tokens import at_prompt, key_states
from salem.models.batching import Batch
from salem.models.network import Network
from salem.models.trunk import resume
from salem.records import Layer, Sample, TextInput
from worker.activations.trunk_sets import prepare
from worker.numerics.losses import min_margin_per_sample, nll_per_sample
from worker.training.loop import CHUNK

NUM_VALUE_STEPS = 100
VALUE_RATE = 0.3  # learning rate of Adam, in units of the root mean square of the layer's output
STOP_MARGIN = 1.0  # nats; training stops when every answer of a chunk leads by this much
SCALE_SAMPLES = 200  # keys that estimate the typical distance


@dataclass(frozen=True)
class NetworkWithCodebook:
    """A network with a codebook at one layer."""

    network: Network
    at: Layer
    codebook: Codebook
    values: Tensor  # [c, d_out] one per entry
    radius: float  # radius of a new entry

    @property
    def layer(self) -> str:
        return self.at.path

    @property
    def delta_bytes(self) -> int:
        return 4 * (self.codebook.keys.numel() + self.codebook.radii.numel() + self.values.numel())

    @contextmanager
    def answering(self, inputs: Sequence[TextInput], batch: Batch | None = None) -> Iterator[None]:
        """While active, inputs inside a ball get its value; the base answers all others."""
        keys, _ = key_states(self.network, inputs, self.at)
        entries = self.codebook.entries(keys)
        with replacing(self.network, inputs, self.at, entries, self.values):
            yield


def grace(editing: Editing) -> NetworkWithCodebook:
    """Add the corrections to a codebook. `setting`: a new radius over the median distance between keys."""
    network, batch = editing.network, editing.batch
    layer = edited_layer(editing, reading_stack(network))
    keys, outputs = key_states(network, batch.corrections, layer)
    before = editing.before
    if isinstance(before, NetworkWithCodebook):
        codebook, values, radius = before.codebook, before.values, before.radius
    else:
        others, _ = key_states(network, (pass_samples(editing) or batch.corrections)[:SCALE_SAMPLES], layer)
        codebook, values = empty_codebook(layer.d_in, network.device), outputs[:0]
        radius = editing.setting * float(torch.cdist(keys[:SCALE_SAMPLES], others).median())
    for key, output, sample in zip(keys, outputs, batch.corrections, strict=True):
        codebook = codebook.with_edit(key, sample.target, radius)
        if len(codebook.labels) > len(values):
            values = torch.cat([values, output.unsqueeze(0)])  # a value starts as the layer's output
    entries = codebook.entries(keys)
    values = train_values(network, batch.corrections, layer, entries, values)
    return NetworkWithCodebook(network, layer, codebook, values, radius)


def train_values(
    network: Network, samples: Sequence[Sample], layer: Layer, entries: Tensor, values: Tensor
) -> Tensor:
    """Train the values on the samples that they apply to -> [c, d_out].

    Samples of a chunk are trained in parallel; they influence each other only if they share an entry.

    Args:
        entries: [n] the entry of each sample, -1 for none.
        values: [c, d_out] the values to start from.
    """
    unit = float(values.square().mean().sqrt())
    for chunk in prepare(network, samples, layer, chunk_size=CHUNK).chunks:
        acting = entries[chunk.samples.to(entries.device)]
        if not bool((acting >= 0).any()):
            continue
        shifts = nn.Parameter(torch.zeros_like(values))
        optimizer = torch.optim.Adam([shifts], lr=VALUE_RATE)
        inputs = [samples[row] for row in chunk.samples.tolist()]
        for _ in range(NUM_VALUE_STEPS):
            optimizer.zero_grad(set_to_none=True)
            with replacing(network, inputs, layer, acting, values + unit * shifts):
                answers = resume(network, chunk.trunk)
            if float(min_margin_per_sample(answers).detach()[acting >= 0].min()) > STOP_MARGIN:
                break
            nll_per_sample(answers)[acting >= 0].sum().backward()
            optimizer.step()
        values = (values + unit * shifts).detach()
    return values


@contextmanager
def replacing(
    network: Network, inputs: Sequence[TextInput], layer: Layer, entries: Tensor, values: Tensor
) -> Iterator[None]:
    """While active, the layer outputs `values[entries]` at prompt tokens.

    Args:
        entries: [n] the entry of each input, -1 for none.
        values: [c, d_out]
    """
    fires = entries >= 0
    with ExitStack() as stack:
        if not bool(fires.any()):
            yield
            return
        prompt_mask = stack.enter_context(at_prompt(network, inputs, layer))
        chosen = values[entries.clamp(min=0)].unsqueeze(1)  # [n, 1, d_out]

        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            rows = output.reshape(len(entries), -1, output.shape[-1])
            replaced = (prompt_mask(rows.shape[1]) & fires.unsqueeze(-1)).unsqueeze(-1)  # [n, t, 1]
            return torch.where(replaced, chosen.to(rows.dtype), rows).reshape(output.shape)

        handle = network.module(layer.path).register_forward_hook(hook)
        stack.callback(handle.remove)
        yield
