"""Causal tracing: corrupts an input and restores one block at a time to find where the answer is stored.

Meng et al., "Locating and Editing Factual Associations in GPT", NeurIPS 2022, section 2.1. Noise of three
standard deviations on the input's embeddings destroys the answer. Then one block gets its clean value back
while everything else stays corrupted. The answer's gain in probability is the block's indirect effect.
Must not know gradients, the targets of edits, or deltas.

The subject of a sample is unknown, so all tokens of the input are corrupted. Restoring the residual stream at
all tokens would undo the corruption at every block. So it restores either the output of the block's matrix at
all tokens (the paper's feed-forward trace, with a window of one block) or the stream at one token at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from salem.inference.predict import predict
from salem.models.batching import Batch, encode, forward
from salem.models.network import Network
from salem.records import Layer, Sample
from worker.activations.trunk_sets import token_mask
from worker.numerics.losses import nll_per_sample

NOISE = 3.0  # standard deviations of the embeddings (section 2.1)
NUM_DRAWS = 10  # noise draws per sample (appendix B)
BATCH = 10

Restored = Literal["matrix", "state"]


@dataclass(frozen=True)
class _Place:
    """Where a layer's value is read and restored."""

    layer: Layer
    module: nn.Module
    clean: Tensor  # the value without noise, [n, t, d] or the model's own shape
    mask: Tensor  # [n, t] tokens that are not padding


def trace_layer(
    network: Network,
    samples: Sequence[Sample],
    layers: Sequence[Layer],
    generator: torch.Generator,
    *,
    restored: Restored = "matrix",
    num_draws: int = NUM_DRAWS,
) -> dict[str, float]:
    """By layer path: the average indirect effect of the layer's block on the network's current answer.

    It traces the network's own answers, not the samples' targets, because the question is where the network
    stores what it knows. The probability of an answer is the geometric mean over its tokens.

    Args:
        restored: `matrix` restores the output of the layer's matrix at all tokens. `state` restores the
            block's residual stream one token at a time and averages over the tokens; it takes t times as
            long.
        num_draws: number of noise draws to average.
    """
    totals = dict.fromkeys((layer.path for layer in layers), 0.0)
    known = own_answers(network, samples)
    for start in range(0, len(known), BATCH):
        effects = trace_batch(
            network,
            encode(network, known[start : start + BATCH]),
            layers,
            generator,
            restored=restored,
            num_draws=num_draws,
        )
        for path, effect in effects.items():
            totals[path] += float(effect.sum())
    return {path: total / len(known) for path, total in totals.items()}


def own_answers(network: Network, samples: Sequence[Sample]) -> list[Sample]:
    """The samples with the network's answers as targets. A sample with an empty answer keeps its target."""
    answers = predict(network, samples)
    return [
        sample.model_copy(update={"target": answer.output or sample.target})
        for sample, answer in zip(samples, answers, strict=True)
    ]


@torch.no_grad()
def trace_batch(
    network: Network,
    batch: Batch,
    layers: Sequence[Layer],
    generator: torch.Generator,
    *,
    restored: Restored = "matrix",
    num_draws: int = NUM_DRAWS,
) -> dict[str, Tensor]:
    """By layer path: the indirect effect on the targets of a batch, averaged over noise draws [n]."""
    places = _clean_values(network, batch, layers, restored)
    input_tokens = _input_tokens(network, batch)
    effects = {layer.path: torch.zeros(len(batch), device=network.device) for layer in layers}
    for _ in range(num_draws):
        with _corrupted(network, input_tokens, generator):
            corrupted = _probability(network, batch)
            for place in places:
                ways = _restorations(place, restored)
                gains = [_probability(network, batch, place.module, put) - corrupted for put, _ in ways]
                weights = torch.stack([weight for _, weight in ways])  # [restorations, n]
                effects[place.layer.path] += (torch.stack(gains) * weights).sum(0) / weights.sum(0)
    return {path: effect / num_draws for path, effect in effects.items()}


def _restorations(place: _Place, restored: Restored) -> list[tuple[Callable[[Tensor], Tensor], Tensor]]:
    """Ways to restore a clean value, each with its weight per sample [n]."""
    mask = place.mask.float()
    if restored == "matrix":
        return [(lambda output: place.clean, torch.ones_like(mask[:, 0]))]
    return [(_put_token(place.clean, token), mask[:, token]) for token in range(mask.shape[1])]


def _put_token(clean: Tensor, token: int) -> Callable[[Tensor], Tensor]:
    def put(output: Tensor) -> Tensor:
        restored = output.clone()
        restored[:, token] = clean[:, token]
        return restored

    return put


def _probability(
    network: Network,
    batch: Batch,
    module: nn.Module | None = None,
    put: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The probability of each sample's target [n], optionally with one module's output replaced by `put`."""
    with ExitStack() as stack:
        if module is not None and put is not None:
            stack.callback(module.register_forward_hook(_replacing(put)).remove)
        return (-nll_per_sample(forward(network, batch))).exp()


def _replacing(put: Callable[[Tensor], Tensor]) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        # A block returns its state, or a tuple that starts with it.
        return (put(output[0]), *output[1:]) if isinstance(output, tuple) else put(output)

    return hook


def _clean_values(
    network: Network, batch: Batch, layers: Sequence[Layer], restored: Restored
) -> list[_Place]:
    seen: dict[str, Tensor] = {}

    def keeper(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen[path] = output[0] if isinstance(output, tuple) else output

        return hook

    modules = {
        layer.path: network.module(layer.path if restored == "matrix" else f"{layer.stack}.{layer.block}")
        for layer in layers
    }
    with ExitStack() as stack:
        for path, module in modules.items():
            stack.callback(module.register_forward_hook(keeper(path)).remove)
        forward(network, batch)
    return [
        _Place(layer, modules[layer.path], seen[layer.path], token_mask(network, batch, layer))
        for layer in layers
    ]


def _input_tokens(network: Network, batch: Batch) -> Tensor:
    """The tokens of the input, without padding and without a decoder's answer -> [n, t] bool."""
    mask = batch.inputs["attention_mask"].bool()
    if not network.task.generates or network.model.config.is_encoder_decoder:
        return mask
    first = (batch.targets != -100).int().argmax(-1, keepdim=True)  # the prompt's last token
    return mask & (torch.arange(mask.shape[1], device=mask.device) <= first)


@contextmanager
def _corrupted(network: Network, tokens: Tensor, generator: torch.Generator) -> Iterator[None]:
    """While active, each forward pass adds the same noise to the embeddings of these tokens [n, t]."""
    model = network.model
    body = model.get_encoder() if model.config.is_encoder_decoder else model
    noise: list[Tensor] = []
    fresh: list[bool] = []

    def begin(module: nn.Module, args: Any) -> None:
        fresh[:] = [True]

    def corrupt(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if not fresh:
            return output  # the second call is from a decoder that shares the encoder's embeddings
        fresh.clear()
        if not noise:
            drawn = torch.randn(output.shape, generator=generator).to(output)
            noise.append(NOISE * output[tokens].std() * drawn * tokens.unsqueeze(-1))
        return output + noise[0]

    with ExitStack() as stack:
        stack.callback(body.register_forward_pre_hook(begin).remove)
        stack.callback(body.get_input_embeddings().register_forward_hook(corrupt).remove)
        yield
