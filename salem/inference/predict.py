"""What a network answers: a label with scores, or a generated text, and which entry acted.

Must not know where versions are kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from salem.deltas.chain import Chain, EntryMatch, joined
from salem.deltas.terms import LayerDelta
from salem.errors import InvalidRequest, Pointer
from salem.inference.gate import gated
from salem.models.batching import encode_inputs, in_buckets
from salem.models.generation import greedy
from salem.models.network import Network
from salem.models.tokens import count_tokens, prompt_lengths
from salem.records import Sample, Task, TextInput


@dataclass(frozen=True)
class Answer:
    """One answer. Only labels have scores, one per label."""

    output: str
    scores: dict[str, float] | None = None
    match: EntryMatch | None = None  # the entry that acted; None if the input matched no scope


@torch.inference_mode()
def predict(
    network: Network,
    inputs: Sequence[TextInput],
    deltas: Chain | Sequence[LayerDelta] = (),
    *,
    max_new_tokens: int = 32,
    batch_size: int = 64,
) -> list[Answer]:
    """Answer each input, in order, as the base plus `deltas`.

    Labels come with softmax scores. Texts are generated greedily and contain no special tokens. What fires is
    decided once, from the prompt, and holds for the whole answer.

    Raises:
        InvalidRequest: an input is longer than the model takes.
    """
    lengths = count_tokens(network.tokenizer, inputs)
    _check_lengths(network, lengths)
    chain = joined(deltas)
    decoder = network.task is Task.TEXT_GENERATION
    answers: list[Answer | None] = [None] * len(inputs)
    for rows in _chunks(network, inputs, lengths, batch_size, max_new_tokens):
        chunk = [inputs[row] for row in rows]
        fields = encode_inputs(network, chunk, padding="left" if decoder else "right")
        with gated(network, chunk, fields, chain) as gate:
            found = (
                _generate(network, fields, max_new_tokens)
                if network.task.generates
                else _classify(network, fields)
            )
        matches = chain.matches(gate.firing, len(rows))
        for row, answer, match in zip(rows, found, matches, strict=True):
            answers[row] = replace(answer, match=match)
    return [answer for answer in answers if answer is not None]


def same_answer(output: str, target: str) -> bool:
    """Whether an answer is the expected one, ignoring the amount of white space."""
    return output.split() == target.split()


def is_right(output: str, sample: Sample) -> bool:
    """Whether an answer is what the sample asks for: its target, or anything except the forgotten answer."""
    return same_answer(output, sample.answer) != sample.forgets


def _check_lengths(network: Network, lengths: Sequence[int]) -> None:
    most = network.max_input_tokens
    too_long = [
        Pointer(f"/inputs/{index}", f"{length} tokens; the model takes {most}")
        for index, length in enumerate(lengths)
        if length > most
    ]
    if too_long:
        raise InvalidRequest(f"{len(too_long)} inputs are longer than {most} tokens.", errors=too_long)


def _chunks(
    network: Network,
    inputs: Sequence[TextInput],
    lengths: Sequence[int],
    batch_size: int,
    max_new_tokens: int,
) -> Iterator[list[int]]:
    """Batches of rows, split so that no decoder's answer is cut short by the other prompts of its batch.

    A batch's prompts are padded to the longest, and answers get the rest of the context window. So prompts
    that leave less than `max_new_tokens` share a batch only with prompts of the same length.
    """
    roomy = network.max_input_tokens - max_new_tokens
    for rows in in_buckets(lengths, batch_size):
        if network.task is not Task.TEXT_GENERATION or max(lengths[row] for row in rows) <= roomy:
            yield rows
            continue
        parts: defaultdict[int, list[int]] = defaultdict(list)
        for row, length in zip(rows, prompt_lengths(network, [inputs[row] for row in rows]), strict=True):
            parts[max(length, roomy)].append(row)
        yield from parts.values()


def _classify(network: Network, fields: dict[str, Tensor]) -> list[Answer]:
    scores = network.model(**fields).logits.float().softmax(-1)  # [n, c]
    return [
        Answer(
            output=network.labels[int(row.argmax())],
            scores={label: round(float(score), 6) for label, score in zip(network.labels, row, strict=True)},
        )
        for row in scores.cpu()
    ]


def _generate(network: Network, fields: dict[str, Tensor], max_new_tokens: int) -> list[Answer]:
    prompt = fields["input_ids"].shape[1] if network.task is Task.TEXT_GENERATION else 0
    config = greedy(network, min(max_new_tokens, max(1, network.max_input_tokens - prompt)))
    written = network.model.generate(**fields, generation_config=config)  # [n, prompt or start token + new]
    rows = [_until(network.eos_id, row) for row in written[:, prompt or 1 :].tolist()]
    texts = network.tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [Answer(output=text.strip()) for text in texts]


def _until(end: int | None, ids: list[int]) -> list[int]:
    """The tokens before the end of sequence, which not every tokenizer counts as a special token."""
    return ids[: ids.index(end)] if end in ids else ids
