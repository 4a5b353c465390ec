"""Where a prompt's tokens are in a running forward: teacher-forced, left-padded, or one token at a time.

The attention mask says where a row begins and the prompt's length where it ends; in a cached step the mask
covers the past too, so the tokens at hand are its last columns. Does not know what is done with the places.
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

Places = Callable[[int], Tensor]  # number of tokens at hand t -> [n, t] bool


@contextmanager
def at_prompt(network: Network, inputs: Sequence[TextInput], layer: Layer) -> Iterator[Places]:
    """While active, tells for the forward that is running which of its tokens an entry acts on.

    All tokens of a decoder's prompt; [CLS] of a classifier; every token of an encoder beside a decoder, which
    reads nothing but the prompt.
    """
    lengths = torch.tensor(_marked_tokens(network, inputs), device=network.device)  # [n]
    masks: list[Tensor] = []  # [n, past + t] of the forward that is running

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        masks[:] = [_mask(kwargs)]

    def places(num_tokens: int) -> Tensor:
        if network.task is Task.TEXT2TEXT_GENERATION:
            return torch.ones(len(lengths), num_tokens, dtype=torch.bool, device=lengths.device)
        index = torch.arange(masks[0].shape[1], device=lengths.device)
        begins = masks[0].long().argmax(-1, keepdim=True)  # [n, 1] the first token that is not padding
        marked = (index >= begins) & (index < begins + lengths.unsqueeze(-1))
        return marked[:, -num_tokens:]

    if network.task is Task.TEXT2TEXT_GENERATION:
        yield places  # an encoder is also run by itself, and needs no mask
        return
    handle = network.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield places
    finally:
        handle.remove()


def _mask(kwargs: dict[str, Any]) -> Tensor:
    """The attention mask [n, past + t] of a forward; generation leaves it out where nothing is padded."""
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


class _Seen(Exception):
    """Ends a forward once the layer has run."""


@torch.no_grad()
def key_states(network: Network, inputs: Sequence[TextInput], layer: Layer) -> tuple[Tensor, Tensor]:
    """What enters and what leaves the layer at each prompt's key token -> [n, d_in], [n, d_out]."""
    keys = torch.zeros(len(inputs), layer.d_in, device=network.device)
    outputs = torch.zeros(len(inputs), layer.d_out, device=network.device)
    for rows in in_buckets(count_tokens(network.tokenizer, inputs), CHUNK):
        fields = encode_inputs(network, [inputs[row] for row in rows])
        x, y = _entering_and_leaving(network, fields, layer)
        last = fields["attention_mask"].sum(-1) - 1
        if network.task is Task.SEQUENCE_CLASSIFICATION:
            last = torch.zeros_like(last)
        each = torch.arange(len(rows), device=network.device)
        keys[rows], outputs[rows] = x[each, last].float(), y[each, last].float()
    return keys, outputs


def _entering_and_leaving(network: Network, fields: dict[str, Tensor], layer: Layer) -> tuple[Tensor, Tensor]:
    seen: list[tuple[Tensor, Tensor]] = []

    def stop(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen.append((args[0], output))
        raise _Seen

    handle = network.module(layer.path).register_forward_hook(stop)
    body = network.model.get_encoder() if network.model.config.is_encoder_decoder else network.model
    try:
        with suppress(_Seen):
            body(**fields)
    finally:
        handle.remove()
    n = len(fields["input_ids"])
    x, y = seen[0]
    return x.reshape(n, -1, x.shape[-1]), y.reshape(n, -1, y.shape[-1])
