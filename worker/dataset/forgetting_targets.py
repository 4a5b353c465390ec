"""Where a generating model goes when it cannot give the answer that it is to forget: its next best way.

An answer of several tokens is lost by losing one of them: the one that the question decides most. By how much
is the pointwise mutual information of question and token (Li et al., "A diversity-promoting objective
function", NAACL 2016, section 3), with other questions for the average. A name's first syllable is decided by
the question; the word before it and the syllables after it would come anyway. From there on the model is let
go its own way, greedily, and training holds it to that way. Where it comes to the same text in other tokens,
the next token is lost that the question decides.

Knows a network and samples. Does not know what is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from salem.inference.predict import same_answer
from salem.models.batching import IGNORED, encode, forward
from salem.models.network import Network
from salem.models.tokens import Diverted, count_tokens
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
        own = _own_ways(network, [samples[row] for row in part])
        ways = {row: _parting(network, way, others) for row, way in zip(part, own, strict=True) if way.tokens}
        _lead_elsewhere(network, list(ways.values()))
        for row, way in ways.items():
            found[row] = way.diverted()
    return found


@dataclass
class _Way:
    """A way while it is followed."""

    sample: Sample
    tokens: list[int]  # so far
    most: int  # tokens that the window has room for
    place: int = -1  # where it parts from the answer; -1: nowhere
    forgotten: int = 0
    answer: tuple[int, ...] = ()  # that is left
    places: list[int] = field(default_factory=list)  # where it could part as well, best first
    room: int = 0  # tokens

    def part(self) -> None:
        """Part from the answer at the next best place."""
        self.place = self.places.pop(0)
        self.forgotten = self.answer[self.place]
        self.tokens = list(self.answer[: self.place])
        self.most = min(self.place + LONGEST, self.room)

    def diverted(self, *more: int) -> Diverted:
        return Diverted(
            **{name: getattr(self.sample, name) for name in Sample.model_fields},
            tokens=(*self.tokens, *more),
            place=self.place,
            forgotten=self.forgotten,
        )


def _own_ways(network: Network, samples: Sequence[Sample]) -> list[_Way]:
    """The tokens of each answer, without its end: as the model writes them where it does, else as its
    tokenizer does. The two may differ, and what is written is what has to be lost.
    """
    decoder = network.task is Task.TEXT_GENERATION
    taken = count_tokens(network.tokenizer, samples) if decoder else [0] * len(samples)
    batch = encode(network, samples)
    spelt = [row[row != IGNORED].tolist() for row in batch.targets]
    room = [network.max_input_tokens - tokens for tokens in taken]
    written = [
        _Way(sample, [], min(2 * len(tokens) + 2, most))
        for sample, tokens, most in zip(samples, spelt, room, strict=True)
    ]
    _follow(network, written)
    for way, tokens, most in zip(written, spelt, room, strict=True):
        way.tokens, way.most = _spelling(network, way) or tokens, most
    return written


def _spelling(network: Network, way: _Way) -> list[int] | None:
    """The first tokens of a way that spell the answer; None: it goes elsewhere."""
    ids = [token for token in way.tokens if token != network.eos_id]
    for end in range(1, len(ids) + 1):
        text = network.tokenizer.decode(ids[:end], skip_special_tokens=True)
        if same_answer(text, way.sample.answer):
            return ids[:end]
    return None


def _parting(network: Network, own: _Way, others: Sequence[TextInput]) -> _Way:
    """The way before it has parted, and where it may: first where the question decides most."""
    (length,) = count_tokens(network.tokenizer, [own.sample])
    gain = _token_likelihoods(network, [own])[0]
    asked = [
        replace(own, sample=Sample(input=item.input, text_pair=item.text_pair, forget=own.sample.answer))
        for item in _no_longer_than(network, others, length)
    ]
    if asked:
        gain = gain - _token_likelihoods(network, asked).exp().mean(0).log()
    places = gain.argsort(descending=True, stable=True).tolist()
    return replace(own, answer=tuple(own.tokens), places=places, room=own.most)


def _token_likelihoods(network: Network, ways: Sequence[_Way]) -> Tensor:
    """Log-likelihood of each of the same tokens behind each question -> [n, t]."""
    unparted = [replace(way, place=0, forgotten=way.tokens[0]).diverted() for way in ways]
    answers = forward(network, encode(network, unparted))
    own = answers.logits.float().log_softmax(-1).gather(-1, answers.targets.unsqueeze(-1))
    return own.reshape(len(ways), -1)


def _no_longer_than(network: Network, others: Sequence[TextInput], length: int) -> list[TextInput]:
    """The first questions that leave room for the same answer."""
    some = list(others[: 8 * OTHERS])
    lengths = count_tokens(network.tokenizer, some)
    return [item for item, tokens in zip(some, lengths, strict=True) if tokens <= length][:OTHERS]


def _lead_elsewhere(network: Network, ways: Sequence[_Way]) -> None:
    """Let each way part and go on, at the best place from which it does not come to the answer again."""
    going = list(ways)
    while going:
        for way in going:
            way.part()
        _follow(network, going)
        going = [way for way in going if way.places and _comes_back(network, way)]


def _comes_back(network: Network, way: _Way) -> bool:
    """Whether a way ends as the very text that is to be forgotten."""
    ids = [token for token in way.tokens if token != network.eos_id]
    return same_answer(network.tokenizer.decode(ids, skip_special_tokens=True), way.sample.answer)


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
