"""Checks with a forward pass on two texts whether a model can be edited.

Editing expects a layer's output to hold one state per token of each sample, in this order, and to resume from
what enters its block. Some architectures differ: experts that see only some tokens, windows longer than the
text, tokens before samples, or blocks that are not a chain. Must not know what an edit is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from salem.errors import UnsupportedModel
from salem.models.batching import Batch, encode, forward
from salem.models.network import Network
from salem.models.trunk import capture, resume
from salem.records import Layer, Sample

PROBES = ("a", "a b c d")
TOLERANCE = 0.1  # of the logits' standard deviation, between a resumed and a whole forward pass


@torch.no_grad()
def check_editable(network: Network) -> None:
    """Check the output of every layer, and resume the model from the highest block of each stack.

    Raises:
        UnsupportedModel: the model cannot be edited; the message says why.
    """
    if not network.task.generates and network.model.config.is_encoder_decoder:
        raise UnsupportedModel(
            f"{type(network.model).__name__} classifies with a decoder that reads the text a second time.",
            remedy="Host a classifier that is only an encoder or only a decoder.",
        )
    answer = network.labels[0] if network.labels else "a"
    batch = encode(network, [Sample(input=text, target=answer) for text in PROBES])
    with _running(network), _outputs(network) as outputs:
        expected = forward(network, batch).logits
    for layer in network.layers:
        if not _are_states(outputs[layer.path], layer, batch):
            raise UnsupportedModel(
                f"{layer.path} of {type(network.model).__name__} does not output one state per token.",
                remedy=_ORDINARY,
            )
    for layer in {layer.stack: layer for layer in network.layers}.values():  # the highest of each
        with _running(network):
            found = resume(network, capture(network, batch, layer)).logits
        if (found - expected).abs().max() > TOLERANCE * expected.std():
            raise UnsupportedModel(
                f"The blocks of {layer.stack} of {type(network.model).__name__} are not a chain.",
                remedy=_ORDINARY,
            )


@contextmanager
def _running(network: Network) -> Iterator[None]:
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, NotImplementedError, AssertionError) as error:
        raise UnsupportedModel(
            f"{type(network.model).__name__} fails on two short texts.", remedy=_ORDINARY
        ) from error


_ORDINARY = (
    "Host a model that is a chain of blocks, each ending in a matrix that all tokens pass. Experts that see "
    "only some tokens and attention windows longer than a text are not supported."
)


@contextmanager
def _outputs(network: Network) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the outputs of every layer, by layer path."""
    outputs: dict[str, list[Tensor]] = {layer.path: [] for layer in network.layers}
    with ExitStack() as stack:
        for layer in network.layers:
            handle = network.module(layer.path).register_forward_hook(_keeping(outputs[layer.path]))
            stack.callback(handle.remove)
        yield outputs


def _keeping(found: list[Tensor]) -> Any:
    return lambda module, args, output: found.append(output)


def _are_states(outputs: list[Tensor], layer: Layer, batch: Batch) -> bool:
    """Whether a layer saw all tokens whenever it ran.

    Some models (OPT) flatten samples and tokens before it; some (ALBERT) run one block several times.
    """
    widths = {tokens.shape[1] for tokens in (*batch.inputs.values(), batch.targets)}
    shapes = {shape for width in widths for shape in ((len(batch), width), (len(batch) * width,))}
    return bool(outputs) and all(
        tuple(one.shape[:-1]) in shapes and one.shape[-1] == layer.d_out for one in outputs
    )
