"""Looks whether a model can be edited, by a forward of two texts: what its layers write has to be states.

Everything that edits takes a layer's output for one state of each token of each sample, in this order, and
goes on from what enters its block. Some architectures are built otherwise: experts that see some tokens,
windows longer than the text, tokens before samples, blocks that are no chain. Does not know what an edit is.
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
TOLERATED = 0.1  # of the spread of the logits: what goes on from a block, against a whole forward


@torch.no_grad()
def check_editable(network: Network) -> None:
    """Run the candidates once, and the model from its highest blocks on.

    Raises:
        UnsupportedModel: says what is not as it has to be; the remedy says what is.
    """
    if not network.task.generates and network.model.config.is_encoder_decoder:
        raise UnsupportedModel(
            f"{type(network.model).__name__} reads a label off a decoder that is given the text once more.",
            remedy="Host a classifier that is an encoder or a decoder alone.",
        )
    answer = network.labels[0] if network.labels else "a"
    batch = encode(network, [Sample(input=text, target=answer) for text in PROBES])
    with _running(network), _written(network) as written:
        expected = forward(network, batch).logits
    for layer in network.layers:
        if not _are_states(written[layer.path], layer, batch):
            raise UnsupportedModel(
                f"{layer.path} of {type(network.model).__name__} does not write one state for each token.",
                remedy=_ORDINARY,
            )
    for layer in {layer.stack: layer for layer in network.layers}.values():  # the highest of each
        with _running(network):
            found = resume(network, capture(network, batch, layer)).logits
        if (found - expected).abs().max() > TOLERATED * expected.std():
            raise UnsupportedModel(
                f"The blocks of {layer.stack} of {type(network.model).__name__} do not follow one another.",
                remedy=_ORDINARY,
            )


@contextmanager
def _running(network: Network) -> Iterator[None]:
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, NotImplementedError, AssertionError) as error:
        raise UnsupportedModel(
            f"{type(network.model).__name__} does not run on two short texts.", remedy=_ORDINARY
        ) from error


_ORDINARY = (
    "Host a model that is a chain of blocks, each of which ends in a matrix that all tokens pass: experts "
    "that see some of them and windows longer than a text cannot be edited yet."
)


@contextmanager
def _written(network: Network) -> Iterator[dict[str, list[Tensor]]]:
    """Collect what every candidate writes, by its path."""
    written: dict[str, list[Tensor]] = {layer.path: [] for layer in network.layers}
    with ExitStack() as stack:
        for layer in network.layers:
            handle = network.module(layer.path).register_forward_hook(_keeping(written[layer.path]))
            stack.callback(handle.remove)
        yield written


def _keeping(found: list[Tensor]) -> Any:
    return lambda module, args, output: found.append(output)


def _are_states(written: list[Tensor], layer: Layer, batch: Batch) -> bool:
    """Whether a layer saw all tokens whenever it ran; some models (OPT) flatten samples and tokens before it,
    some (ALBERT) run one block several times.
    """
    widths = {tokens.shape[1] for tokens in (*batch.inputs.values(), batch.targets)}
    shapes = {shape for width in widths for shape in ((len(batch), width), (len(batch) * width,))}
    return bool(written) and all(
        tuple(one.shape[:-1]) in shapes and one.shape[-1] == layer.d_out for one in written
    )
