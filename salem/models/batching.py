"""Turns samples into padded tensors, the same shape of batch for all three tasks.

The key idea is the *answer position*: a position in the model's logits where an answer is expected. A
classifier has one per sample; a generator has one per target token, including the end of sequence. Losses,
gradients, and divergences are functions of the logits at answer positions and never ask for the task.

Must not know losses, layers, or deltas.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from inspect import signature

import torch
from torch import Tensor

from salem.errors import EditFailed
from salem.models.network import Network
from salem.models.tokens import (
    ForgettingSample,
    answer_ids,
    continuation_ids,
    prompt_ids,
    sample_lengths,
    tokenize,
)
from salem.records import Sample, Task, TextInput

IGNORED = -100  # the target at positions that expect no answer
LENGTH_BUCKET = 16  # tokens; kernels run faster on few distinct shapes


@dataclass(frozen=True)
class Batch:
    """Samples as tensors: `n` samples, `t` tokens, `m` answer positions per sample (1 for a classifier)."""

    inputs: dict[str, Tensor]  # arguments of the model's forward, each [n, t]
    targets: Tensor  # [n, m] label or token ids; IGNORED where no answer is expected
    directions: Tensor | None = None  # [n, m] 1: toward the target, -1: away from it, 0: neither; None: all 1

    def __len__(self) -> int:
        return self.targets.shape[0]

    @property
    def answer_mask(self) -> Tensor:
        """The answer positions -> [n, m] bool."""
        return self.targets != IGNORED

    @property
    def answer_starts(self) -> Tensor:
        """The first answer position of each sample -> [n]; for a decoder, its prompt's last token."""
        return self.answer_mask.int().argmax(-1)

    def rows(self, index: Tensor) -> Batch:
        """The samples at `index` [k]."""
        directions = None if self.directions is None else self.directions[index]
        return Batch(
            {key: value[index] for key, value in self.inputs.items()}, self.targets[index], directions
        )


@dataclass(frozen=True)
class Answers:
    """The logits at the `a` answer positions of a batch."""

    logits: Tensor  # [a, c] c classes or vocabulary entries
    targets: Tensor  # [a]
    sample: Tensor  # [a] the row of the batch that each position belongs to
    num_samples: int
    directions: Tensor | None = None  # [a] as in `Batch`

    def mean_per_sample(self, values: Tensor) -> Tensor:
        """Average `values` [a] over the answer positions of each sample -> [n]."""
        ones = torch.ones_like(values)
        empty = values.new_zeros(self.num_samples)
        return empty.index_add(0, self.sample, values) / empty.index_add(0, self.sample, ones).clamp(min=1)


def answers_of(logits: Tensor, batch: Batch) -> Answers:
    """The logits at a batch's answer positions.

    Args:
        logits: [n, c] of a classifier, [n, m, c] of a generator, or [a, c] at the answer positions only.
    """
    mask = batch.answer_mask
    if logits.dim() == 3:
        logits = logits[mask]
    directions = None if batch.directions is None else batch.directions[mask]
    return Answers(logits, batch.targets[mask], mask.nonzero()[:, 0], len(batch), directions)


def forward(network: Network, batch: Batch, **extra: object) -> Answers:
    """One forward pass of the whole model, without a key-value cache unless `extra` brings one.

    A decoder computes logits at answer positions only, if its architecture supports that.
    """
    if network.task.generates:
        extra.setdefault("use_cache", False)
    if network.task is Task.TEXT_GENERATION and supports_logits_to_keep(network):
        extra["logits_to_keep"] = batch.answer_mask
    return answers_of(network.model(**batch.inputs, **extra).logits, batch)


def supports_logits_to_keep(network: Network) -> bool:
    """Whether a forward pass can skip the logits of prompt tokens; always true for tasks without them."""
    decoder = network.task is Task.TEXT_GENERATION
    return not decoder or "logits_to_keep" in signature(type(network.model).forward).parameters


def encode(network: Network, samples: Sequence[Sample]) -> Batch:
    """Samples with their answers, padded to a multiple of `LENGTH_BUCKET`.

    If a sample forgets its answer, the end of sequence is not an answer position: an answer that only goes on
    is not forgotten.

    Raises:
        EditFailed: a target is not one of the labels, or a sample or target exceeds the model's limit.
    """
    if network.task is Task.SEQUENCE_CLASSIFICATION:
        targets = [[_label_index(network, sample)] for sample in samples]
        batch = Batch(encode_inputs(network, samples), torch.tensor(targets, device=network.device))
    elif network.task is Task.TEXT2TEXT_GENERATION:
        batch = _encode_seq2seq(network, samples)
    else:
        batch = _encode_decoder(network, samples)
    if max(field.shape[1] for field in batch.inputs.values()) > network.max_input_tokens:
        raise _too_long(network, samples)
    return _with_directions(network, batch, samples) if any(sample.forgets for sample in samples) else batch


def _too_long(network: Network, samples: Sequence[Sample]) -> EditFailed:
    length, sample = max(
        zip(sample_lengths(network, samples), samples, strict=True), key=lambda pair: pair[0]
    )
    return EditFailed(
        f"{network.turns.quote(sample.input)} has {length} tokens with its target; the model takes at most "
        f"{network.max_input_tokens}.",
        remedy="Shorten the sample, or leave it out.",
    )


def _with_directions(network: Network, batch: Batch, samples: Sequence[Sample]) -> Batch:
    """The batch with the directions of its answer positions, for samples that forget."""
    targets, directions = batch.targets.clone(), torch.ones_like(batch.targets)
    for row, sample in enumerate(samples):
        positions = (targets[row] != IGNORED).nonzero()[:, 0]
        if isinstance(sample, ForgettingSample):
            directions[row] = 0
            directions[row, positions[sample.branch]] = -1
            targets[row, positions[sample.branch]] = sample.forgotten
        elif sample.forgets:
            directions[row] = -1
            if network.task.generates:
                targets[row, positions[targets[row, positions] == network.eos_id]] = IGNORED
    return Batch(batch.inputs, targets, directions)


def encode_inputs(
    network: Network, inputs: Sequence[TextInput], *, padding: str = "right"
) -> dict[str, Tensor]:
    """Inputs without targets, as the model reads them; decoders generate from left-padded prompts."""
    tokens = tokenize(network.tokenizer, inputs)
    rows = [prompt_ids(network, ids) for ids in tokens["input_ids"]]
    fields = {"input_ids": _pad(rows, network.pad_id, network, padding)}
    fields["attention_mask"] = _pad([[1] * len(row) for row in rows], 0, network, padding)
    if "token_type_ids" in tokens and network.task is Task.SEQUENCE_CLASSIFICATION:
        fields["token_type_ids"] = _pad(tokens["token_type_ids"], 0, network, padding)
    return fields


def _label_index(network: Network, sample: Sample) -> int:
    if sample.answer not in network.labels:
        raise EditFailed(f'"{sample.answer}" is not one of the model\'s {len(network.labels)} labels.')
    return network.labels.index(sample.answer)


def _encode_seq2seq(network: Network, samples: Sequence[Sample]) -> Batch:
    targets = _pad(answer_ids(network, samples), IGNORED, network, "right", bucket=8)
    before = torch.cat([torch.full_like(targets[:, :1], network.start_id), targets[:, :-1]], dim=1)
    inputs = encode_inputs(network, samples)
    inputs["decoder_input_ids"] = before.masked_fill(before == IGNORED, network.pad_id)
    return Batch(inputs, targets)


def _encode_decoder(network: Network, samples: Sequence[Sample]) -> Batch:
    pairs = [continuation_ids(network, sample) for sample in samples]
    rows = [prompt + answer for prompt, answer in pairs]
    # The logits at position i predict token i + 1, so targets are shifted one position to the left.
    targets = [[IGNORED] * (len(prompt) - 1) + answer + [IGNORED] for prompt, answer in pairs]
    inputs = {
        "input_ids": _pad(rows, network.pad_id, network, "right"),
        "attention_mask": _pad([[1] * len(row) for row in rows], 0, network, "right"),
    }
    return Batch(inputs, _pad(targets, IGNORED, network, "right"))


def _pad(
    rows: Sequence[Sequence[int]], fill: int, network: Network, side: str, bucket: int = LENGTH_BUCKET
) -> Tensor:
    longest = max(len(row) for row in rows)
    if side == "left":
        bucket = 1  # extra padding would leave less room for the answer
    width = max(longest, min(-(-longest // bucket) * bucket, network.max_input_tokens))
    padding = [[fill] * (width - len(row)) for row in rows]
    pairs = zip(rows, padding, strict=True)
    padded = [[*row, *pad] if side == "right" else [*pad, *row] for row, pad in pairs]
    return torch.tensor(padded, device=network.device)


def in_buckets(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices of samples in batches of near-equal length, longest first (to fail early)."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
