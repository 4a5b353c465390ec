"""Samples prepared for training at one layer: chunks of captured trunks, in buckets of near-equal length.

Everything that stays constant while a delta is trained is computed here, once: what enters the edited
block, the answers before the edit, and the second moment of the layer's inputs. With a cache it outlives the
job. Does not know objectives or editors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from salem.models.batching import Answers, Batch, encode, in_buckets
from salem.models.network import Network
from salem.models.tokens import count_tokens
from salem.models.trunk import Trunk, capture, resume
from salem.records import Layer, Sample
from salem.scope.scope import Firing
from worker.activations.block_replay import BlockMemory, Room
from worker.activations.cache import SampleCache
from worker.activations.trunk_files import from_tensors, to_tensors
from worker.numerics.losses import next_choices, worst_margin_per_sample

BLOCK_BYTES = 256 * 2**20  # of a set: what the edited block's modules returned, as far as it fits in here


@dataclass(frozen=True)
class Chunk:
    """Up to a chunk's size of samples, stopped below the layer."""

    trunk: Trunk
    samples: Tensor  # [n] their places in the list that was prepared
    before: Tensor | None  # [a, c] log-probabilities at the answer positions that are to stay, as they were
    held: Tensor | None  # [n] whether the sample was answered rightly before
    firing: Firing | None = None  # what fires on the samples, where scoped terms are trained
    memory: BlockMemory = field(default_factory=lambda: BlockMemory(Room(0)))

    def __len__(self) -> int:
        return len(self.samples)

    def resume(self, network: Network) -> Answers:
        """Run the model from the edited block up; from the second time on, from the edited matrix up."""
        with self.memory.passing(network, self.trunk.layer):
            return resume(network, self.trunk)

    def rows(self, index: Tensor) -> Chunk:
        """The samples at `index` [k], ascending; the part has no memory of its own."""
        chosen = torch.zeros(len(self), dtype=torch.bool)
        chosen[index] = True
        asked = self.trunk.batch.asked.nonzero()[:, 0]  # [a] sample of each answer position
        return Chunk(
            self.trunk.rows(index),
            self.samples[index],
            before=None if self.before is None else self.before[chosen.to(asked.device)[asked]],
            held=None if self.held is None else self.held[index],
            firing=None if self.firing is None else self.firing.rows(index),
        )


@dataclass(frozen=True)
class TrunkSet:
    """All samples of one kind, prepared at one layer."""

    chunks: tuple[Chunk, ...]

    @property
    def num_samples(self) -> int:
        return sum(len(chunk.samples) for chunk in self.chunks)

    def with_firing(self, firing: Firing) -> TrunkSet:
        """The same samples, told what fires on each."""
        return TrunkSet(
            tuple(
                replace(
                    chunk,
                    firing=replace(firing.rows(chunk.samples), starts=chunk.trunk.batch.answer_starts),
                )
                for chunk in self.chunks
            )
        )

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
    """Capture the trunks of samples that are to change; of those that forget, what is to stay is kept."""
    room = Room(BLOCK_BYTES)
    chunks = [
        Chunk(capture(network, batch, layer), torch.tensor(rows), None, None, memory=BlockMemory(room))
        for rows, batch in batches(network, samples, chunk_size)
    ]
    return TrunkSet(tuple(_with_next_choices(network, chunk) for chunk in chunks))


@torch.no_grad()
def _with_next_choices(network: Network, chunk: Chunk) -> Chunk:
    if chunk.trunk.batch.pulls is None:
        return chunk
    return replace(chunk, before=next_choices(chunk.resume(network)))


@torch.no_grad()
def prepare_with_answers(
    network: Network,
    samples: Sequence[Sample],
    layer: Layer,
    *,
    chunk_size: int,
    cache: SampleCache | None = None,
    room: Room | None = None,
) -> tuple[TrunkSet, Tensor]:
    """Capture the trunks of samples that are to stay, with their answers and the second moment of the inputs.

    `cache` is that of the network as it answers now. Chunks that it holds are not run again; new ones go
    there, and on a CPU their tensors then stay on the disk, memory-mapped. Sets that are to share the memory
    for what the edited block returned are given the same `room`.

    Returns:
        The prepared samples, and the mean of u uᵀ over all their tokens that are not padding: [d_in, d_in].
    """
    known = cache.get(cache.key("moment", samples, layer.path)) if cache else None
    moment = _Moment(network, layer)
    room = room or Room(BLOCK_BYTES)
    chunks: list[Chunk] = []
    for rows, batch in batches(network, samples, chunk_size):
        key = cache.key("trunk", [samples[row] for row in rows], layer.path) if cache else ""
        stored = cache.get(key) if cache and known else None
        memory = BlockMemory(room)
        if stored is None:
            trunk, before, held = _run(network, batch, layer, memory, moment)
            named = to_tensors(trunk, before, held) if cache else None
            if cache and named:
                cache.put(key, named)
                stored = cache.get(key)
        if stored is not None:
            trunk, before, held = from_tensors(stored, layer, batch, network.device)
        chunks.append(Chunk(trunk, torch.tensor(rows), before, held, memory=memory))
    if cache and known is None and chunks:
        cache.put(cache.key("moment", samples, layer.path), {"moment": moment.mean})
    return TrunkSet(tuple(chunks)), known["moment"].to(network.device) if known else moment.mean


class _Moment:
    """The mean of u uᵀ over all tokens of a layer that are not padding."""

    def __init__(self, network: Network, layer: Layer) -> None:
        self._sum = torch.zeros(layer.d_in, layer.d_in, device=network.device)
        self._count = 0

    def add(self, u: Tensor) -> None:
        """Count rows u [k, d_in]."""
        self._sum.addmm_(u.T, u)
        self._count += len(u)

    @property
    def mean(self) -> Tensor:
        return self._sum / max(self._count, 1)


def _run(
    network: Network, batch: Batch, layer: Layer, memory: BlockMemory, moment: _Moment
) -> tuple[Trunk, Tensor, Tensor]:
    """One pass of the whole model: trunk, log-probabilities before [a, c], whether each was right [n]."""
    seen: list[Tensor] = []
    trunk = capture(network, batch, layer)
    handle = network.module(layer.path).register_forward_hook(_keep_input(seen))
    try:
        with memory.passing(network, layer):
            answers = resume(network, trunk)
    finally:
        handle.remove()
    moment.add(seen[0].reshape(-1, layer.d_in)[token_mask(network, batch, layer).reshape(-1)].float())
    return trunk, answers.logits.float().log_softmax(-1), worst_margin_per_sample(answers) > 0


def token_mask(network: Network, batch: Batch, layer: Layer) -> Tensor:
    """Which tokens of the layer's stack are not padding -> [n, t] bool."""
    in_decoder = network.model.config.is_encoder_decoder and not layer.stack.startswith(
        _encoder_path(network)
    )
    if not in_decoder:
        return batch.inputs["attention_mask"].bool()
    # A decoder reads the start token and then its targets, one place later.
    length = batch.asked.sum(-1, keepdim=True)
    return torch.arange(batch.targets.shape[1], device=length.device) < length


def _encoder_path(network: Network) -> str:
    encoder = network.model.get_encoder()
    path: str = next(path for path, module in network.model.named_modules() if module is encoder)
    return f"{path}."


def _keep_input(seen: list[Tensor]) -> Any:
    def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(args[0])

    return hook
