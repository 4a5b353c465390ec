"""u and v: the two factors of a linear layer's gradient, per sample and token.

u is the layer's input, and v is the loss gradient at its output; the weight gradient is vᵀu (MEND, section
3.1). Weights are frozen, so no weight gradient is ever formed here.

Must not know what the gradients are for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from salem.models.batching import Answers, Batch, forward
from salem.models.network import Network
from salem.models.trunk import Trunk, resume
from salem.records import Layer
from worker.numerics.losses import nll_per_sample

Loss = Callable[[Answers], Tensor]  # -> [n]


@dataclass(frozen=True)
class TokenGradients:
    """One layer's u and v for n samples, padded to t tokens; v is zero at tokens without a gradient."""

    u: Tensor  # [n, t, d_in]
    v: Tensor  # [n, t, d_out]

    def token_rows(self) -> tuple[Tensor, Tensor]:
        """u [k, d_in] and v [k, d_out] of the k tokens that carry a gradient, as in MEND."""
        kept = self._carrying()
        return self.u[kept], self.v[kept]

    def token_places(self) -> Tensor:
        """Sample and token index of each row of `token_rows` -> [k, 2]."""
        return self._carrying().nonzero()

    def token_samples(self) -> Tensor:
        """The sample of each row of `token_rows` -> [k]."""
        return self.token_places()[:, 0]

    def _carrying(self) -> Tensor:
        """Tokens that carry a gradient -> [n, t] bool."""
        return (self.v != 0).any(-1) & (self.u != 0).any(-1)


def token_gradients(network: Network, batch: Batch, layers: Sequence[Layer]) -> dict[str, TokenGradients]:
    """u and v of every layer by layer path, from one forward and one backward pass of the summed loss.

    The loss of a sample is the mean negative log-likelihood over its answer positions.
    """
    with _recording(network, layers) as taken:
        return _backward(taken, forward(network, batch))


def suffix_gradients(
    network: Network, trunk: Trunk, loss_per_sample: Loss = nll_per_sample
) -> TokenGradients:
    """u and v of the trunk's layer, running only the blocks from its block up, for any loss per sample."""
    with _recording(network, [trunk.layer]) as taken:
        return _backward(taken, resume(network, trunk), loss_per_sample)[trunk.layer.path]


def _backward(
    taken: dict[str, tuple[Tensor, Tensor]], answers: Answers, loss_per_sample: Loss = nll_per_sample
) -> dict[str, TokenGradients]:
    loss = loss_per_sample(answers).sum()
    outputs = [output for _, output in taken.values()]
    gradients = torch.autograd.grad(loss, outputs)
    return {
        path: TokenGradients(_batched(u, answers.num_samples), _batched(v, answers.num_samples))
        for (path, (u, _)), v in zip(taken.items(), gradients, strict=True)
    }


def _batched(rows: Tensor, n: int) -> Tensor:
    """Rows as [n, t, d]; some models (OPT) flatten samples and tokens before a matrix."""
    return rows.detach().reshape(n, -1, rows.shape[-1])


@contextmanager
def _recording(network: Network, layers: Sequence[Layer]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Collect (input, output) of every layer in the order of execution; outputs are part of the graph."""
    taken: dict[str, tuple[Tensor, Tensor]] = {}

    def hook_for(path: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            # With frozen weights, nothing requires a gradient before the first recorded layer.
            output = output if output.requires_grad else output.detach().requires_grad_()
            taken[path] = (args[0], output)
            return output

        return hook

    with ExitStack() as stack:
        for layer in layers:
            handle = network.module(layer.path).register_forward_hook(hook_for(layer.path))
            stack.callback(handle.remove)
        yield taken
