"""Turns samples into padded tensors, the same shape of batch for all three tasks.

The unifying idea is the *answer position*: a place in the model's logits where an answer is expected. A
classifier has one per sample, a generator one per target token (end of sequence included). Losses, gradients
and divergences are functions of the logits at answer positions and never ask which task it is.

Knows padding and answer positions. Does not know losses, layers or deltas.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from inspect import signature

import torch
from torch import Tensor

from salem.errors import EditFailed
from salem.messages import quoted
from salem.models.network import Network
from salem.models.tokens import Diverted, continuation_ids, prompt_ids, sample_lengths, tokenize, written_ids
from salem.records import Sample, Task, TextInput

IGNORED = -100  # the target where no answer is asked
LENGTH_BUCKET = 16  # tokens; few distinct shapes keep kernels warm


@dataclass(frozen=True)
class Batch:
    """Samples as tensors: `n` samples, `t` tokens, `m` answer positions a sample (m = 1 for a classifier)."""

    inputs: dict[str, Tensor]  # arguments of the model's forward, each [n, t]
    targets: Tensor  # [n, m] label or token ids, IGNORED where no answer is asked
    pulls: Tensor | None = None  # [n, m] 1: to its target, -1: away from it, 0: to stay; None: all are 1

    def __len__(self) -> int:
        return self.targets.shape[0]

    @property
    def asked(self) -> Tensor:
        """The answer positions -> [n, m] bool."""
        return self.targets != IGNORED

    @property
    def answer_starts(self) -> Tensor:
        """The first answer position of each sample -> [n]; for a decoder that of its prompt's last token."""
        return self.asked.int().argmax(-1)

    def rows(self, index: Tensor) -> Batch:
        """The samples at `index` [k]."""
        pulls = None if self.pulls is None else self.pulls[index]
        return Batch({key: value[index] for key, value in self.inputs.items()}, self.targets[index], pulls)


@dataclass(frozen=True)
class Answers:
    """The logits at the answer positions of a batch; `a` positions in all."""

    logits: Tensor  # [a, c] c classes or vocabulary entries
    targets: Tensor  # [a]
    sample: Tensor  # [a] row of the batch that each position belongs to
    num_samples: int
    pulls: Tensor | None = None  # [a] as in `Batch`; None: all are 1

    def mean_per_sample(self, values: Tensor) -> Tensor:
        """Average `values` [a] over the answer positions of each sample -> [n]."""
        ones = torch.ones_like(values)
        empty = values.new_zeros(self.num_samples)
        return empty.index_add(0, self.sample, values) / empty.index_add(0, self.sample, ones).clamp(min=1)


def answers_of(logits: Tensor, batch: Batch) -> Answers:
    """The answer positions of a forward's logits.

    Args:
        logits: [n, c] of a classifier, [n, m, c] of a generator, or [a, c] of the answer positions alone.
    """
    asked = batch.asked
    sample = asked.nonzero()[:, 0]
    if logits.dim() == 3:
        logits = logits[asked]
    of_positions = None if batch.pulls is None else batch.pulls[asked]
    return Answers(logits, batch.targets[asked], sample, len(batch), of_positions)


def forward(network: Network, batch: Batch, **extra: object) -> Answers:
    """One forward of the whole model, without a key-value cache.

    A decoder gives logits at the answers alone, not at every token of its prompts, where it can be told so.
    """
    if network.task.generates:
        extra["use_cache"] = False
    if network.task is Task.TEXT_GENERATION and gives_answers_alone(network):
        extra["logits_to_keep"] = batch.asked
    return answers_of(network.model(**batch.inputs, **extra).logits, batch)


def gives_answers_alone(network: Network) -> bool:
    """Whether a forward gives logits at answer positions alone; some decoders can only give all of them."""
    writes_on = network.task is Task.TEXT_GENERATION
    return not writes_on or "logits_to_keep" in signature(type(network.model).forward).parameters


def encode(network: Network, samples: Sequence[Sample]) -> Batch:
    """Samples with their answers, padded to a multiple of `LENGTH_BUCKET`.

    Where an answer is to be forgotten, its end is no answer position: to go on after it is not to forget it.

    Raises:
        EditFailed: a target is not one of the labels, or a sample or target is longer than the model takes.
    """
    if network.task is Task.SEQUENCE_CLASSIFICATION:
        targets = [[_label_index(network, sample)] for sample in samples]
        batch = Batch(encode_inputs(network, samples), torch.tensor(targets, device=network.device))
    elif network.task is Task.TEXT2TEXT_GENERATION:
        batch = _encode_translation(network, samples)
    else:
        batch = _encode_continuation(network, samples)
    if max(field.shape[1] for field in batch.inputs.values()) > network.max_input_tokens:
        raise _too_long(network, samples)
    return _marked(network, batch, samples) if any(sample.forgets for sample in samples) else batch


def _too_long(network: Network, samples: Sequence[Sample]) -> EditFailed:
    length, sample = max(
        zip(sample_lengths(network, samples), samples, strict=True), key=lambda pair: pair[0]
    )
    return EditFailed(
        f"{quoted(sample.input)} has {length} tokens with its target; the model takes "
        f"{network.max_input_tokens}.",
        remedy="Shorten the sample, or leave it out.",
    )


def _marked(network: Network, batch: Batch, samples: Sequence[Sample]) -> Batch:
    """The batch with what its forgetting samples pull away from, and what of them is to stay."""
    targets, pulls = batch.targets.clone(), torch.ones_like(batch.targets)
    for row, sample in enumerate(samples):
        places = (targets[row] != IGNORED).nonzero()[:, 0]
        if isinstance(sample, Diverted):
            pulls[row] = 0
            pulls[row, places[sample.place]] = -1
            targets[row, places[sample.place]] = sample.forgotten
        elif sample.forgets:
            pulls[row] = -1
            if network.task.generates:
                targets[row, places[targets[row, places] == network.eos_id]] = IGNORED
    return Batch(batch.inputs, targets, pulls)


def encode_inputs(
    network: Network, inputs: Sequence[TextInput], *, padding: str = "right"
) -> dict[str, Tensor]:
    """Inputs without targets, as the model is asked them; decoders generate from left-padded prompts."""
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


def _encode_translation(network: Network, samples: Sequence[Sample]) -> Batch:
    targets = _pad(written_ids(network, samples), IGNORED, network, "right", bucket=8)
    before = torch.cat([torch.full_like(targets[:, :1], network.start_id), targets[:, :-1]], dim=1)
    inputs = encode_inputs(network, samples)
    inputs["decoder_input_ids"] = before.masked_fill(before == IGNORED, network.pad_id)
    return Batch(inputs, targets)


def _encode_continuation(network: Network, samples: Sequence[Sample]) -> Batch:
    pairs = [continuation_ids(network, sample) for sample in samples]
    rows = [prompt + answer for prompt, answer in pairs]
    # The logits at position i speak about token i + 1, so targets stand one place to the left.
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
        bucket = 1  # a prompt's padding would take room from the answer
    width = max(longest, min(-(-longest // bucket) * bucket, network.max_input_tokens))
    padding = [[fill] * (width - len(row)) for row in rows]
    pairs = zip(rows, padding, strict=True)
    padded = [[*row, *pad] if side == "right" else [*pad, *row] for row, pad in pairs]
    return torch.tensor(padded, device=network.device)


def in_buckets(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices of samples in batches of near-equal length, longest first (an out-of-memory shows at once)."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
