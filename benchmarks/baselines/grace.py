"""GRACE: a codebook beside one layer; an input near a known edit gets that edit's value instead of the
layer's.

Hartvigsen et al., "Aging with GRACE: Lifelong Model Editing with Discrete Key-Value Adaptors", NeurIPS
2023. The key is what enters the layer at the token that closes the prompt ([CLS] of a classifier, the last
of an encoder's or a decoder's prompt); the value replaces what leaves the layer, at [CLS] or at all tokens
of the prompt, and is trained by gradient steps. Decided once, from the prompt, and held for the whole
answer. Does not know how entries meet in the codebook.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baselines.codebook import Codebook, empty_codebook
from benchmarks.baselines.contract import Editing
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
VALUE_RATE = 0.3  # of Adam, in units of the root mean square of the layer's output
FIRM = 1.0  # nats by which every answer of a chunk leads when its steps end
SCALE_SAMPLES = 200  # keys whose distances say what is near


@dataclass(frozen=True)
class Remembering:
    """A network with a codebook and its values at one layer."""

    network: Network
    at: Layer
    codebook: Codebook
    values: Tensor  # [c, d_out]
    radius: float  # of a new entry

    @property
    def layer(self) -> str:
        return self.at.path

    @property
    def delta_bytes(self) -> int:
        return 4 * (self.codebook.keys.numel() + self.codebook.radii.numel() + self.values.numel())

    @contextmanager
    def answering(self, inputs: Sequence[TextInput], batch: Batch | None = None) -> Iterator[None]:
        """While active, inputs inside a ball get its value; the base answers all others, untouched."""
        keys, _ = key_states(self.network, inputs, self.at)
        entries = self.codebook.entries(keys)
        with replacing(self.network, inputs, self.at, entries, self.values):
            yield


def grace(editing: Editing) -> Remembering:
    """A codebook of the corrections. `setting`: the first radius, relative to the median distance of keys."""
    network, batch = editing.network, editing.batch
    layer = edited_layer(editing, reading_stack(network))
    keys, outputs = key_states(network, batch.corrections, layer)
    before = editing.before
    if isinstance(before, Remembering):
        codebook, values, radius = before.codebook, before.values, before.radius
    else:
        others, _ = key_states(network, (pass_samples(editing) or batch.corrections)[:SCALE_SAMPLES], layer)
        codebook, values = empty_codebook(layer.d_in, network.device), outputs[:0]
        radius = editing.setting * float(torch.cdist(keys[:SCALE_SAMPLES], others).median())
    for key, output, sample in zip(keys, outputs, batch.corrections, strict=True):
        codebook = codebook.with_edit(key, sample.target, radius)
        if len(codebook.labels) > len(values):
            values = torch.cat([values, output.unsqueeze(0)])  # a new value starts as what the layer puts out
    entries = codebook.entries(keys)
    values = train_values(network, batch.corrections, layer, entries, values)
    return Remembering(network, layer, codebook, values, radius)


def train_values(
    network: Network, samples: Sequence[Sample], layer: Layer, entries: Tensor, values: Tensor
) -> Tensor:
    """The values after gradient steps on the samples that they act on -> [c, d_out].

    Samples of a chunk are trained side by side; only those that share an entry feel one another.
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
            if float(min_margin_per_sample(answers).detach()[acting >= 0].min()) > FIRM:
                break
            nll_per_sample(answers)[acting >= 0].sum().backward()
            optimizer.step()
        values = (values + unit * shifts).detach()
    return values


@contextmanager
def replacing(
    network: Network, inputs: Sequence[TextInput], layer: Layer, entries: Tensor, values: Tensor
) -> Iterator[None]:
    """While active, the layer puts out `values[entries]` at the prompts' tokens; -1 stands for none."""
    fires = entries >= 0
    with ExitStack() as stack:
        if not bool(fires.any()):
            yield
            return
        places = stack.enter_context(at_prompt(network, inputs, layer))
        chosen = values[entries.clamp(min=0)].unsqueeze(1)  # [n, 1, d_out]

        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            rows = output.reshape(len(entries), -1, output.shape[-1])
            here = (places(rows.shape[1]) & fires.unsqueeze(-1)).unsqueeze(-1)  # [n, t, 1]
            return torch.where(here, chosen.to(rows.dtype), rows).reshape(output.shape)

        handle = network.module(layer.path).register_forward_hook(hook)
        stack.callback(handle.remove)
        yield
