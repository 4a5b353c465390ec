"""Finds the prompt's tokens during a forward pass: teacher-forced, left-padded, or one token at a time.

The attention mask shows where a row starts, and the prompt's length where it ends. With a cache, the mask
also covers past tokens, so the current tokens are its last columns. Must not know how callers use the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from salem.models.batching import encode_inputs, in_buckets
from salem.models.network import Network
from salem.models.tokens import count_tokens
from salem.records import Layer, Task, TextInput
from worker.training.loop import CHUNK

PromptMask = Callable[[int], Tensor]  # number of current tokens t -> [n, t] bool


@contextmanager
def at_prompt(network: Network, inputs: Sequence[TextInput], layer: Layer) -> Iterator[PromptMask]:
    """Yield a function that returns, inside a forward pass, which current tokens an entry applies to.

    These are all tokens of a decoder's prompt, [CLS] of a classifier, and every token of an encoder-decoder's
    encoder, because that reads only the prompt.
    """
    lengths = torch.tensor(_marked_tokens(network, inputs), device=network.device)  # [n]
    masks: list[Tensor] = []  # [n, past + t] of the current forward pass

    def record_mask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        masks[:] = [_mask(kwargs)]

    def prompt_mask(num_tokens: int) -> Tensor:
        if network.task is Task.TEXT2TEXT_GENERATION:
            return torch.ones(len(lengths), num_tokens, dtype=torch.bool, device=lengths.device)
        index = torch.arange(masks[0].shape[1], device=lengths.device)
        starts = masks[0].long().argmax(-1, keepdim=True)  # [n, 1] the first token that is not padding
        marked = (index >= starts) & (index < starts + lengths.unsqueeze(-1))
        return marked[:, -num_tokens:]

    if network.task is Task.TEXT2TEXT_GENERATION:
        yield prompt_mask  # needs no attention mask; the encoder may also run alone
        return
    handle = network.model.register_forward_pre_hook(record_mask, with_kwargs=True)
    try:
        yield prompt_mask
    finally:
        handle.remove()


def _mask(kwargs: dict[str, Any]) -> Tensor:
    """The attention mask [n, past + t] of a forward pass; generation omits it if nothing is padded."""
    given: Tensor | None = kwargs.get("attention_mask")
    if given is not None:
        return given
    past, ids = kwargs.get("past_key_values"), kwargs["input_ids"]
    seen = past.get_seq_length() if past is not None else 0
    return ids.new_ones(len(ids), seen + ids.shape[1])


def _marked_tokens(network: Network, inputs: Sequence[TextInput]) -> list[int]:
    if network.task is Task.SEQUENCE_CLASSIFICATION:
        return [1] * len(inputs)
    return [int(encode_inputs(network, [item])["attention_mask"].sum()) for item in inputs]


class _LayerDone(Exception):
    """Ends a forward pass after the layer has run."""


@torch.no_grad()
def key_states(network: Network, inputs: Sequence[TextInput], layer: Layer) -> tuple[Tensor, Tensor]:
    """The layer's input and output at each prompt's key token -> [n, d_in], [n, d_out]."""
    keys = torch.zeros(len(inputs), layer.d_in, device=network.device)
    outputs = torch.zeros(len(inputs), layer.d_out, device=network.device)
    for rows in in_buckets(count_tokens(network.tokenizer, inputs), CHUNK):
        fields = encode_inputs(network, [inputs[row] for row in rows])
        x, y = _input_and_output(network, fields, layer)
        last = fields["attention_mask"].sum(-1) - 1
        if network.task is Task.SEQUENCE_CLASSIFICATION:
            last = torch.zeros_like(last)
        each = torch.arange(len(rows), device=network.device)
        keys[rows], outputs[rows] = x[each, last].float(), y[each, last].float()
    return keys, outputs


def _input_and_output(network: Network, fields: dict[str, Tensor], layer: Layer) -> tuple[Tensor, Tensor]:
    """What enters and leaves the layer -> [n, t, d_in], [n, t, d_out]. Stops the forward pass there."""
    seen: list[tuple[Tensor, Tensor]] = []

    def stop(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen.append((args[0], output))
        raise _LayerDone

    handle = network.module(layer.path).register_forward_hook(stop)
    body = network.model.get_encoder() if network.model.config.is_encoder_decoder else network.model
    try:
        with suppress(_LayerDone):
            body(**fields)
    finally:
        handle.remove()
    n = len(fields["input_ids"])
    x, y = seen[0]
    return x.reshape(n, -1, x.shape[-1]), y.reshape(n, -1, y.shape[-1])
