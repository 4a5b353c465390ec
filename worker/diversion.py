"""Where a generating model goes when it cannot give the answer that it is to forget: its next best way.

An answer of several tokens is lost by losing one of them: the one that the question decides most. By how much
is the pointwise mutual information of question and token (Li et al., "A diversity-promoting objective
function", NAACL 2016, section 3), with other questions for the average. A name's first syllable is decided by
the question; the word before it and the syllables after it would come anyway. From there on the model is let
go its own way, greedily, and training holds it to that way.

Knows a network and samples. Does not know what is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from salem.encoding import Diverted, encode, forward
from salem.hosting import Network, count_tokens
from salem.records import EditBatch, Sample, Task, TextInput

LONGEST = 12  # tokens of the other way, from where it parts on
OTHERS = 4  # questions that say what comes anyway
BATCH = 32  # samples in one forward


@torch.no_grad()
def divert(network: Network, batch: EditBatch) -> EditBatch:
    """The batch, its forgetting edit and adapt samples with the way that the network takes instead.

    A label needs no way: all others are known. Everything else stays as it is.
    """
    if not network.task.generates or not any(sample.forgets for sample in batch.corrections):
        return batch
    found = iter(_diverted(network, batch.corrections, batch.pass_samples))
    return batch.model_copy(
        update={
            "edit_samples": tuple(next(found) for _ in batch.edit_samples),
            "adapt_samples": tuple((edit, next(found)) for edit, _ in batch.adapt_samples),
        }
    )


def _diverted(network: Network, samples: Sequence[Sample], others: Sequence[TextInput]) -> list[Sample]:
    """Each sample, in order; those that forget with their other way."""
    found = list(samples)
    rows = [row for row, sample in enumerate(samples) if sample.forgets]
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        ways = [_parting(network, samples[row], others) for row in part]
        _follow(network, [way for way in ways if way is not None])
        for row, way in zip(part, ways, strict=True):
            found[row] = way.diverted() if way else samples[row]
    return found


@dataclass
class _Way:
    """A way while it is followed."""

    sample: Sample
    tokens: list[int]  # so far
    forgotten: int
    place: int
    most: int  # tokens that it may have

    def diverted(self, *more: int) -> Diverted:
        return Diverted(
            **{name: getattr(self.sample, name) for name in Sample.model_fields},
            tokens=(*self.tokens, *more),
            place=self.place,
            forgotten=self.forgotten,
        )


def _parting(network: Network, sample: Sample, others: Sequence[TextInput]) -> _Way | None:
    """The way up to where it parts from the answer; None for an answer without tokens."""
    own, tokens = _token_likelihoods(network, [sample])
    if not len(tokens):
        return None
    (length,) = count_tokens(network.tokenizer, [sample])
    questions = _no_longer_than(network, others, length)
    gain = own[0]
    if questions:
        asked = [
            Sample(input=item.input, text_pair=item.text_pair, forget=sample.answer) for item in questions
        ]
        gain = gain - _token_likelihoods(network, asked)[0].exp().mean(0).log()
    place = int(gain.argmax())
    taken = length if network.task is Task.TEXT_GENERATION else 0
    most = min(place + LONGEST, network.max_input_tokens - taken)
    return _Way(sample, tokens[:place].tolist(), int(tokens[place]), place, most)


def _token_likelihoods(network: Network, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Log-likelihood of each token of one answer behind each question [n, t], and the tokens [t]."""
    answers = forward(network, encode(network, samples))
    own = answers.logits.float().log_softmax(-1).gather(-1, answers.targets.unsqueeze(-1))
    return own.reshape(len(samples), -1), answers.targets[answers.sample == 0]


def _no_longer_than(network: Network, others: Sequence[TextInput], length: int) -> list[TextInput]:
    """The first questions that leave room for the same answer."""
    some = list(others[: 8 * OTHERS])
    lengths = count_tokens(network.tokenizer, some)
    return [item for item, tokens in zip(some, lengths, strict=True) if tokens <= length][:OTHERS]


def _follow(network: Network, ways: Sequence[_Way]) -> None:
    """Let each way go on with the likeliest token, never the forgotten one, to its end."""
    going = [way for way in ways if len(way.tokens) < way.most]
    while going:
        logits = _next_logits(network, going)
        for row, way in enumerate(going):
            if len(way.tokens) == way.place:
                logits[row, way.forgotten] = float("-inf")
            way.tokens.append(int(logits[row].argmax()))
        going = [way for way in going if len(way.tokens) < way.most and way.tokens[-1] != network.eos_id]


def _next_logits(network: Network, ways: Sequence[_Way]) -> Tensor:
    """What may come next on each way -> [n, c]."""
    batch = encode(network, [way.diverted(network.pad_id) for way in ways])
    answers = forward(network, batch)
    last = answers.sample.bincount(minlength=len(ways)).cumsum(0) - 1
    return answers.logits[last].float()
