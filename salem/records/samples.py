"""Tasks, inputs, samples, edits, and the edit dataset of a job."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from salem.records.base import Record


class Task(StrEnum):
    """What a hosted model does with a text."""

    SEQUENCE_CLASSIFICATION = "sequence-classification"
    TEXT2TEXT_GENERATION = "text2text-generation"
    TEXT_GENERATION = "text-generation"

    @property
    def generates(self) -> bool:
        """True where the answer is free text, False where it is one of the model's labels."""
        return self is not Task.SEQUENCE_CLASSIFICATION


class TextInput(Record):
    """What a hosted model is asked: one text, or a pair (premise and hypothesis, question and passage)."""

    input: str = Field(min_length=1)
    text_pair: str | None = None

    @property
    def content_hash(self) -> str:
        """sha256 of the text and its pair. It identifies an input whatever its target is."""
        return hashlib.sha256("\x1f".join([self.input, self.text_pair or ""]).encode()).hexdigest()

    @property
    def words_hash(self) -> str:
        """The same, ignoring the amount of white space. The checks of a request compare inputs by it."""
        words = (" ".join(text.split()) for text in (self.input, self.text_pair or ""))
        return hashlib.sha256("\x1f".join(words).encode()).hexdigest()


class Sample(TextInput):
    """An input with its right answer in `target`: a label of the model, or a text.

    Or there is no target, and `forget` is the one answer that is not to be given: any other will do. Pass and
    reference samples always have a target.
    """

    target: str | None = Field(default=None, min_length=1)
    forget: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _is_for_one_answer(self) -> Self:
        if (self.target is None) == (self.forget is None):
            raise ValueError("give either the right answer in target, or the one to move away from in forget")
        return self

    @property
    def forgets(self) -> bool:
        """Whether the sample forgets an answer instead of getting one."""
        return self.forget is not None

    @property
    def becomes(self) -> tuple[str | None, str | None]:
        """The target and the answer to forget. Two samples with the same input agree if these are equal."""
        return self.target, self.forget

    @property
    def answer(self) -> str:
        """The target, or the answer to forget."""
        answer = self.target if self.forget is None else self.forget
        assert answer is not None, "the validator saw one of the two"
        return answer


class Edit(Sample):
    """A correction: a sample that must be answered differently, and its paraphrases.

    A paraphrase replaces `input`; `text_pair`, `target` and `forget` stay those of the edit.
    """

    paraphrases: tuple[str, ...] = ()

    @property
    def sample(self) -> Sample:
        return Sample(input=self.input, text_pair=self.text_pair, target=self.target, forget=self.forget)

    @property
    def paraphrase_samples(self) -> tuple[Sample, ...]:
        return tuple(self.sample.model_copy(update={"input": text}) for text in self.paraphrases)


class EditBatch(Record):
    """The edit dataset of one job (SaLEM, section 3: fail, adapt, and pass samples) and its held-out parts.

    `adapt_samples` and `held_out_paraphrases` carry the index of the edit that they reword, so that
    figures can be given per edit. Nothing in a `held_out_*` field is ever seen in training or selection.
    """

    edit_samples: tuple[Sample, ...]
    adapt_samples: tuple[tuple[int, Sample], ...]  # (index of the edit, sample)
    pass_samples: tuple[Sample, ...]
    held_out_paraphrases: tuple[tuple[int, Sample], ...]
    held_out_pass_samples: tuple[Sample, ...]
    equivalents: tuple[tuple[TextInput, TextInput], ...] = ()  # other texts that ask the same, in pairs
    num_seen: int = 0  # paraphrases that would be held out, had no earlier job been trained on them

    @property
    def corrections(self) -> tuple[Sample, ...]:
        """Edit samples, then adapt samples: everything that must be answered differently."""
        return (*self.edit_samples, *(sample for _, sample in self.adapt_samples))

    @property
    def held_out_words(self) -> frozenset[str]:
        """The words of the paraphrases held out: no rule may make them again for training."""
        return frozenset(sample.words_hash for _, sample in self.held_out_paraphrases)

    @property
    def owners(self) -> tuple[int, ...]:
        """The index of the edit that each of the corrections belongs to."""
        return (*range(len(self.edit_samples)), *(edit for edit, _ in self.adapt_samples))

    @property
    def paraphrases(self) -> tuple[tuple[Sample, Sample], ...]:
        """Each edit sample with each of its adapt samples."""
        return tuple((self.edit_samples[edit], sample) for edit, sample in self.adapt_samples)


class ReferenceSample(Record):
    """A labeled sample registered with a hosted model, and how the base answers it."""

    sample: Sample
    paraphrases: tuple[str, ...] = ()  # the same in other words, where the client knows them
    answer: str
    correct: bool
    held_out: bool
    fits: bool = True  # whether the model's window holds it with its target, as training encodes it

    @property
    def passes(self) -> bool:
        """Whether it is one of the hosted model's pass samples."""
        return self.correct and self.fits


def held_out(content_hash: str, share: float = 0.4) -> bool:
    """Whether a reference sample belongs to the held-out part: decided by its content, once and for ever."""
    return int(content_hash[:8], 16) / 2**32 < share
