"""Finds what a generating model writes instead of an answer that it must forget.

To lose an answer of several tokens, it is enough to lose one: the token that the question determines most.
The measure is the pointwise mutual information of question and token (Li et al., "A diversity-promoting
objective function", NAACL 2016, section 3), with other questions for the average. The question determines a
name's first syllable; the word before it and the syllables after it would follow anyway. From that token on,
the model continues greedily without it, and training holds the model to this continuation. If the
continuation spells the same text in other tokens, the search branches off at the next best token.

Must not know what is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from salem.inference.predict import same_answer
from salem.models.batching import IGNORED, encode, forward
from salem.models.network import Network
from salem.models.tokens import ForgettingSample, count_tokens
from salem.records import EditBatch, Sample, Task, TextInput

MAX_CONTINUATION_TOKENS = 12  # of a continuation, from the branch on
NUM_OTHER_QUESTIONS = 4  # to estimate how likely a token is without the question
BATCH = 32  # samples in one forward pass


@torch.no_grad()
def add_forgetting_targets(network: Network, batch: EditBatch) -> EditBatch:
    """The batch, with continuations for the edit and adapt samples that forget.

    A classifier needs none: its other labels are known. All other samples stay as they are.
    """
    if not network.task.generates or not any(sample.forgets for sample in batch.corrections):
        return batch
    found = iter(_with_continuations(network, batch.corrections, batch.pass_samples))
    return batch.model_copy(
        update={
            "edit_samples": tuple(next(found) for _ in batch.edit_samples),
            "adapt_samples": tuple((edit, next(found)) for edit, _ in batch.adapt_samples),
        }
    )


def _with_continuations(
    network: Network, samples: Sequence[Sample], others: Sequence[TextInput]
) -> list[Sample]:
    """All samples in order; those that forget as `ForgettingSample`."""
    found = list(samples)
    rows = [row for row, sample in enumerate(samples) if sample.forgets]
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        own = _answers(network, [samples[row] for row in part])
        branches = {
            row: _ranked_branches(network, answer, others)
            for row, answer in zip(part, own, strict=True)
            if answer.tokens
        }
        _branch_off(network, list(branches.values()))
        for row, branch in branches.items():
            found[row] = branch.as_sample()
    return found


@dataclass
class _Continuation:
    """A text while the model writes it."""

    sample: Sample
    tokens: list[int]  # so far
    max_tokens: int  # what fits in the model's window
    branch: int = -1  # index of the token that differs from the answer; -1: none
    forgotten: int = 0  # the answer's token there
    answer: tuple[int, ...] = ()  # the tokens to forget
    candidates: list[int] = field(default_factory=list)  # other branch indices, best first
    window: int = 0  # tokens left for an answer

    def next_branch(self) -> None:
        """Start again at the next best branch index."""
        self.branch = self.candidates.pop(0)
        self.forgotten = self.answer[self.branch]
        self.tokens = list(self.answer[: self.branch])
        self.max_tokens = min(self.branch + MAX_CONTINUATION_TOKENS, self.window)

    def as_sample(self, *more: int) -> ForgettingSample:
        """The sample with the tokens so far and `more`."""
        return ForgettingSample(
            **{name: getattr(self.sample, name) for name in Sample.model_fields},
            tokens=(*self.tokens, *more),
            branch=self.branch,
            forgotten=self.forgotten,
        )


def _answers(network: Network, samples: Sequence[Sample]) -> list[_Continuation]:
    """The tokens of each answer, without its end: as the model writes them if it does, else the tokenizer's.

    The two may differ, and the tokens that the model writes are the ones to lose.
    """
    decoder = network.task is Task.TEXT_GENERATION
    taken = count_tokens(network.tokenizer, samples) if decoder else [0] * len(samples)
    batch = encode(network, samples)
    tokenized = [row[row != IGNORED].tolist() for row in batch.targets]
    windows = [network.max_input_tokens - tokens for tokens in taken]
    written = [
        _Continuation(sample, [], min(2 * len(tokens) + 2, window))
        for sample, tokens, window in zip(samples, tokenized, windows, strict=True)
    ]
    _write_on(network, written)
    for answer, tokens, window in zip(written, tokenized, windows, strict=True):
        answer.tokens, answer.max_tokens = _tokens_of_answer(network, answer) or tokens, window
    return written


def _tokens_of_answer(network: Network, written: _Continuation) -> list[int] | None:
    """The first tokens that spell the answer; None if the model wrote something else."""
    ids = [token for token in written.tokens if token != network.eos_id]
    for end in range(1, len(ids) + 1):
        text = network.tokenizer.decode(ids[:end], skip_special_tokens=True)
        if same_answer(text, written.sample.answer):
            return ids[:end]
    return None


def _ranked_branches(network: Network, own: _Continuation, others: Sequence[TextInput]) -> _Continuation:
    """The answer with its branch indices: the token that the question determines most comes first."""
    (length,) = count_tokens(network.tokenizer, [own.sample])
    gain = _token_log_probs(network, [own])[0]
    elsewhere = [
        replace(own, sample=Sample(input=item.input, text_pair=item.text_pair, forget=own.sample.answer))
        for item in _no_longer_than(network, others, length)
    ]
    if elsewhere:
        gain = gain - _token_log_probs(network, elsewhere).exp().mean(0).log()
    candidates = gain.argsort(descending=True, stable=True).tolist()
    return replace(own, answer=tuple(own.tokens), candidates=candidates, window=own.max_tokens)


def _token_log_probs(network: Network, answers: Sequence[_Continuation]) -> Tensor:
    """Log-probability of each of the same t tokens after each question -> [n, t]."""
    samples = [replace(answer, branch=0, forgotten=answer.tokens[0]).as_sample() for answer in answers]
    found = forward(network, encode(network, samples))
    own = found.logits.float().log_softmax(-1).gather(-1, found.targets.unsqueeze(-1))
    return own.reshape(len(answers), -1)


def _no_longer_than(network: Network, others: Sequence[TextInput], length: int) -> list[TextInput]:
    """The first questions that leave room for the same answer."""
    some = list(others[: 8 * NUM_OTHER_QUESTIONS])
    lengths = count_tokens(network.tokenizer, some)
    return [item for item, tokens in zip(some, lengths, strict=True) if tokens <= length][
        :NUM_OTHER_QUESTIONS
    ]


def _branch_off(network: Network, branches: Sequence[_Continuation]) -> None:
    """Continue each at its best branch index from which it does not come back to the answer."""
    open_branches = list(branches)
    while open_branches:
        for branch in open_branches:
            branch.next_branch()
        _write_on(network, open_branches)
        open_branches = [
            branch for branch in open_branches if branch.candidates and _is_answer(network, branch)
        ]


def _is_answer(network: Network, branch: _Continuation) -> bool:
    """Whether a continuation spells the answer that must be forgotten."""
    ids = [token for token in branch.tokens if token != network.eos_id]
    return same_answer(network.tokenizer.decode(ids, skip_special_tokens=True), branch.sample.answer)


def _write_on(network: Network, texts: Sequence[_Continuation]) -> None:
    """Write each text to its end, greedily, but never the forgotten token at its branch."""
    unfinished = [text for text in texts if len(text.tokens) < text.max_tokens]
    while unfinished:
        logits = _next_logits(network, unfinished)
        for row, text in enumerate(unfinished):
            if len(text.tokens) == text.branch:
                logits[row, text.forgotten] = float("-inf")
            text.tokens.append(int(logits[row].argmax()))
        unfinished = [
            text
            for text in unfinished
            if len(text.tokens) < text.max_tokens and text.tokens[-1] != network.eos_id
        ]


def _next_logits(network: Network, texts: Sequence[_Continuation]) -> Tensor:
    """Logits of each text's next token -> [n, c]."""
    batch = encode(network, [text.as_sample(network.pad_id) for text in texts])
    answers = forward(network, batch)
    last = answers.sample.bincount(minlength=len(texts)).cumsum(0) - 1
    return answers.logits[last].float()
