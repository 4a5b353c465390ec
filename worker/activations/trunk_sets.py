"""Samples prepared for training at one layer: chunks of captured trunks.

Everything that stays constant while a delta is trained is computed here, once: what enters the edited
block, the answers before the edit, and the second moment of the layer's inputs. A cache keeps it.
Must not know objectives or editors.
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
from salem.models.trunk import Trunk, capture, capture_answers, resume
from salem.records import Layer, Sample, TextInput
from salem.scope.firing import Firing
from worker.activations.block_replay import BlockMemory, MemoryBudget
from worker.activations.cache import SampleCache
from worker.activations.stable_chunks import stable_chunks
from worker.activations.trunk_files import CapturedChunk, from_tensors, to_tensors
from worker.numerics.losses import log_probs_without_forgotten, min_margin_per_sample

BLOCK_BYTES = 256 * 2**20  # per set: most memory for what the modules of the edited block returned
PROMPT_BYTES = 2**30  # per set: most memory for keys and values of prompts


@dataclass(frozen=True)
class Chunk:
    """Samples that share a forward pass, stopped below the layer."""

    trunk: Trunk
    samples: Tensor  # [n] their indices in the list that was prepared
    before: (
        Tensor | None
    )  # [a, c] log-probabilities before the edit, at answer positions that must not change
    correct: Tensor | None  # [n] bool: whether the sample was answered correctly before the edit
    firing: Firing | None = None  # which entries act on the samples, if scoped terms are trained
    memory: BlockMemory = field(default_factory=lambda: BlockMemory(MemoryBudget(0)))

    def __len__(self) -> int:
        return len(self.samples)

    def resume(self, network: Network) -> Answers:
        """Run the model from the edited block up; from the second run on, from the edited matrix up."""
        with self.memory.passing(network, self.trunk.layer):
            return resume(network, self.trunk)

    def rows(self, index: Tensor) -> Chunk:
        """The samples at `index` [k], ascending, without a block memory."""
        chosen = torch.zeros(len(self), dtype=torch.bool)
        chosen[index] = True
        sample = self.trunk.batch.answer_mask.nonzero()[:, 0]  # [a] of each answer position
        return Chunk(
            self.trunk.rows(index),
            self.samples[index],
            before=None if self.before is None else self.before[chosen.to(sample.device)[sample]],
            correct=None if self.correct is None else self.correct[index],
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
        """The same samples with what fires on each."""
        return TrunkSet(
            tuple(
                replace(
                    chunk,
                    firing=replace(firing.rows(chunk.samples), answer_starts=chunk.trunk.batch.answer_starts),
                )
                for chunk in self.chunks
            )
        )

    def cycle(self, generator: torch.Generator) -> Iterator[Chunk]:
        """Endless chunks: each chunk once per round, in a new order each round."""
        while self.chunks:
            for index in torch.randperm(len(self.chunks), generator=generator).tolist():
                yield self.chunks[index]


def batches(
    network: Network, samples: Sequence[Sample], size: int, *, by_answer: bool = False
) -> Iterator[tuple[list[int], Batch]]:
    """Encoded batches of near-equal length, with the indices of their samples.

    Args:
        by_answer: whether the length of the answer counts before that of the prompt.
    """
    lengths = count_tokens(network.tokenizer, samples)
    if by_answer:
        answers = count_tokens(network.tokenizer, [TextInput(input=sample.answer) for sample in samples])
        longest = max(lengths, default=0) + 1
        lengths = [answer * longest + length for answer, length in zip(answers, lengths, strict=True)]
    for rows in in_buckets(lengths, size):
        yield rows, encode(network, [samples[row] for row in rows])


def prepare(
    network: Network, samples: Sequence[Sample], layer: Layer, *, chunk_size: int, tail: int | None = None
) -> TrunkSet:
    """Capture the trunks of samples to correct. Those that forget also get the base's next choices.

    Args:
        tail: set it if what is trained acts only on this many tokens at the end of a prompt, and on answers.
            A decoder then runs for these tokens only, until keys and values of prompts take `PROMPT_BYTES`.
    """
    budget, prompt_bytes = MemoryBudget(BLOCK_BYTES), MemoryBudget(PROMPT_BYTES)
    chunks: list[Chunk] = []
    for rows, batch in batches(network, samples, chunk_size, by_answer=tail is not None):
        trunk = capture_answers(network, batch, layer, tail) if tail else capture(network, batch, layer)
        if trunk.prompts and not prompt_bytes.take(trunk.prompts.num_bytes):
            tail, trunk = None, capture(network, batch, layer)
        chunks.append(Chunk(trunk, torch.tensor(rows), None, None, memory=BlockMemory(budget)))
    return TrunkSet(tuple(_with_next_choices(network, chunk) for chunk in chunks))


@torch.no_grad()
def _with_next_choices(network: Network, chunk: Chunk) -> Chunk:
    if chunk.trunk.batch.directions is None:
        return chunk
    return replace(chunk, before=log_probs_without_forgotten(chunk.resume(network)))


@torch.no_grad()
def prepare_with_answers(
    network: Network,
    samples: Sequence[Sample],
    layer: Layer,
    *,
    chunk_size: int,
    cache: SampleCache | None = None,
    budget: MemoryBudget | None = None,
) -> tuple[TrunkSet, Tensor]:
    """Capture the trunks of samples whose answers must stay, with these answers and the layer's inputs.

    Args:
        cache: belongs to the network as it answers now. A chunk that it holds is not run again. On a CPU,
            cached tensors stay on disk, memory-mapped.
        budget: bytes for what the edited block returned; several sets may share it.

    Returns:
        The prepared samples, and the mean of u uᵀ over all their tokens that are not padding: [d_in, d_in].
    """
    moment_key = cache.key("moment", samples, layer.path) if cache else ""
    known = cache.get(moment_key) if cache else None
    moment = _Moment(network, layer)
    budget = budget or MemoryBudget(BLOCK_BYTES)
    chunks: list[Chunk] = []
    for rows in stable_chunks(samples, count_tokens(network.tokenizer, samples), chunk_size):
        memory = BlockMemory(budget)
        found = _captured(network, [samples[row] for row in rows], layer, memory, cache)
        if known is None:
            moment.add(found.inputs.to(network.device).float())
        chunks.append(Chunk(found.trunk, torch.tensor(rows), found.log_probs, found.correct, memory=memory))
    if known is not None:
        return TrunkSet(tuple(chunks)), known["moment"].to(network.device)
    if cache and chunks:
        cache.put(moment_key, {"moment": moment.mean})
    return TrunkSet(tuple(chunks)), moment.mean


def _captured(
    network: Network, samples: Sequence[Sample], layer: Layer, memory: BlockMemory, cache: SampleCache | None
) -> CapturedChunk:
    """One chunk: from the cache if it is there, else from a forward pass."""
    batch = encode(network, samples)
    if cache is None:
        return _run(network, batch, layer, memory)
    key = cache.key("trunk", samples, layer.path)
    stored = cache.get(key)
    if stored is None:
        chunk = _run(network, batch, layer, memory)
        named = to_tensors(chunk)
        if not named:
            return chunk
        cache.put(key, named)
        stored = cache.get(key)
        if stored is None:
            return chunk
    return from_tensors(stored, layer, batch, network.device)


class _Moment:
    """The mean of u uᵀ over a layer's inputs."""

    def __init__(self, network: Network, layer: Layer) -> None:
        self._sum = torch.zeros(layer.d_in, layer.d_in, device=network.device)
        self._count = 0

    def add(self, u: Tensor) -> None:
        """Add rows u [k, d_in]."""
        self._sum.addmm_(u.T, u)
        self._count += len(u)

    @property
    def mean(self) -> Tensor:
        return self._sum / max(self._count, 1)


def _run(network: Network, batch: Batch, layer: Layer, memory: BlockMemory) -> CapturedChunk:
    """Run the whole model on a batch."""
    seen: list[Tensor] = []
    trunk = capture(network, batch, layer)
    handle = network.module(layer.path).register_forward_hook(_keep_input(seen))
    try:
        with memory.passing(network, layer):
            answers = resume(network, trunk)
    finally:
        handle.remove()
    inputs = seen[0].reshape(-1, layer.d_in)[token_mask(network, batch, layer).reshape(-1)]
    correct = min_margin_per_sample(answers) > 0
    return CapturedChunk(trunk, inputs, answers.logits.float().log_softmax(-1), correct)


def token_mask(network: Network, batch: Batch, layer: Layer) -> Tensor:
    """Which tokens of the layer's stack are not padding -> [n, t] bool."""
    in_decoder = network.model.config.is_encoder_decoder and not layer.stack.startswith(
        _encoder_path(network)
    )
    if not in_decoder:
        return batch.inputs["attention_mask"].bool()
    # A decoder reads the start token first, then its targets, shifted by one.
    length = batch.answer_mask.sum(-1, keepdim=True)
    return torch.arange(batch.targets.shape[1], device=length.device) < length


def _encoder_path(network: Network) -> str:
    encoder = network.model.get_encoder()
    path: str = next(path for path, module in network.model.named_modules() if module is encoder)
    return f"{path}."


def _keep_input(seen: list[Tensor]) -> Any:
    def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(args[0])

    return hook
