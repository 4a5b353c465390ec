"""Samples prepared for training at one layer: chunks of captured trunks, in buckets of near-equal length.

Everything that stays constant while a delta is trained is computed here, once: what enters the edited
block, the answers before the edit, and the second moment of the layer's inputs. Does not know objectives or
editors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from salem.encoding import Batch, encode, in_buckets
from salem.hosting import Network, count_tokens
from salem.records import Layer, Sample
from salem.scopes import Firing
from salem.trunk import Trunk, capture, resume
from worker.losses import worst_margin_per_sample


@dataclass(frozen=True)
class Chunk:
    """Up to a chunk's size of samples, stopped below the layer."""

    trunk: Trunk
    samples: Tensor  # [n] their places in the list that was prepared
    before: Tensor | None  # [a, c] log-probabilities at the answer positions before the edit
    held: Tensor | None  # [n] whether the sample was answered rightly before
    firing: Firing | None = None  # what fires on the samples, where scoped terms are trained


@dataclass(frozen=True)
class TrunkSet:
    """All samples of one kind, prepared at one layer."""

    chunks: tuple[Chunk, ...]

    @property
    def num_samples(self) -> int:
        return sum(len(chunk.samples) for chunk in self.chunks)

    def with_firing(self, firing: Firing) -> TrunkSet:
        """The same samples, told what fires on each."""
        chunks = [replace(chunk, firing=firing.rows(chunk.samples)) for chunk in self.chunks]
        return TrunkSet(tuple(chunks))

    def cycle(self, generator: torch.Generator) -> Iterator[Chunk]:
        """Chunks without end: every one once per round, each round in a new order."""
        while self.chunks:
            for index in torch.randperm(len(self.chunks), generator=generator).tolist():
                yield self.chunks[index]


def batches(network: Network, samples: Sequence[Sample], size: int) -> Iterator[tuple[list[int], Batch]]:
    """Encoded batches of near-equal length with the places of their samples."""
    for rows in in_buckets(count_tokens(network.tokenizer, samples), size):
        yield rows, encode(network, [samples[row] for row in rows])


def prepare(network: Network, samples: Sequence[Sample], layer: Layer, *, chunk_size: int) -> TrunkSet:
    """Capture the trunks of samples that are to change."""
    return TrunkSet(
        tuple(
            Chunk(capture(network, batch, layer), torch.tensor(rows), before=None, held=None)
            for rows, batch in batches(network, samples, chunk_size)
        )
    )


@torch.no_grad()
def prepare_with_answers(
    network: Network, samples: Sequence[Sample], layer: Layer, *, chunk_size: int
) -> tuple[TrunkSet, Tensor]:
    """Capture the trunks of samples that are to stay, with their answers and the second moment of the inputs.

    Returns:
        The prepared samples, and the mean of u uᵀ over all their tokens that are not padding: [d_in, d_in].
    """
    moment = torch.zeros(layer.d_in, layer.d_in, device=network.device)
    count = 0
    chunks: list[Chunk] = []
    seen: list[Tensor] = []
    handle = network.module(layer.path).register_forward_hook(_keep_input(seen))
    try:
        for rows, batch in batches(network, samples, chunk_size):
            trunk = capture(network, batch, layer)
            seen.clear()
            answers = resume(network, trunk)
            u = seen[0].reshape(-1, layer.d_in)[token_mask(network, batch, layer).reshape(-1)].float()
            moment.addmm_(u.T, u)
            count += len(u)
            before = answers.logits.float().log_softmax(-1)
            chunks.append(Chunk(trunk, torch.tensor(rows), before, worst_margin_per_sample(answers) > 0))
    finally:
        handle.remove()
    return TrunkSet(tuple(chunks)), moment / max(count, 1)


def token_mask(network: Network, batch: Batch, layer: Layer) -> Tensor:
    """Which tokens of the layer's stack are not padding -> [n, t] bool."""
    in_decoder = network.model.config.is_encoder_decoder and not layer.stack.startswith(
        _encoder_path(network)
    )
    if not in_decoder:
        return batch.inputs["attention_mask"].bool()
    # A decoder reads the start token and then its targets, one place later.
    length = (batch.targets != -100).sum(-1, keepdim=True)
    return torch.arange(batch.targets.shape[1], device=length.device) < length


def _encoder_path(network: Network) -> str:
    encoder = network.model.get_encoder()
    return next(path for path, module in network.model.named_modules() if module is encoder) + "."


def _keep_input(seen: list[Tensor]) -> Any:
    def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(args[0])

    return hook
