"""Looks whether a model can be edited, by one forward of two texts: what its layers write has to be states.

Everything that edits takes a layer's output for one state of each token of each sample, in this order. Blocks
of some architectures end otherwise: in experts that see some tokens, in windows longer than the text, with
tokens before samples. Does not know what an edit is.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from salem.encoding import encode, forward
from salem.errors import UnsupportedModel
from salem.hosting import Network
from salem.records import Layer, Sample

PROBES = ("a", "a b c d")


def check_editable(network: Network) -> None:
    """Run the candidates once and look at what they write.

    Raises:
        UnsupportedModel: names the first layer that does not write states; the remedy says what does.
    """
    answer = network.labels[0] if network.labels else "a"
    batch = encode(network, [Sample(input=text, target=answer) for text in PROBES])
    columns = {tokens.shape[1] for tokens in (*batch.inputs.values(), batch.targets)}
    written: dict[str, list[Tensor]] = {layer.path: [] for layer in network.layers}
    with ExitStack() as stack, torch.no_grad():
        for layer in network.layers:
            handle = network.module(layer.path).register_forward_hook(_keeping(written[layer.path]))
            stack.callback(handle.remove)
        forward(network, batch)
    for layer in network.layers:
        if not _are_states(written[layer.path], layer, len(batch), columns):
            raise UnsupportedModel(
                f"{layer.path} of {type(network.model).__name__} does not write one state for each token.",
                remedy="Host a model whose blocks end in a matrix that all tokens pass: experts that see "
                "some of them and windows longer than a text cannot be edited yet.",
            )


def _keeping(found: list[Tensor]) -> Any:
    return lambda module, args, output: found.append(output)


def _are_states(written: list[Tensor], layer: Layer, num_samples: int, columns: set[int]) -> bool:
    """Whether a layer ran once, over the samples' tokens; some models (OPT) flatten both before a matrix."""
    if len(written) != 1 or written[0].shape[-1] != layer.d_out:
        return False
    shape = tuple(written[0].shape[:-1])
    return any(shape in ((num_samples, width), (num_samples * width,)) for width in columns)
