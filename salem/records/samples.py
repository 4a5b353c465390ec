"""Tasks, inputs, samples, edits, and the edit dataset of a job."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Literal, Self

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
    """An input of a hosted model: a text or a pair (premise and hypothesis, question and passage)."""

    input: str = Field(min_length=1)
    text_pair: str | None = None

    @property
    def content_hash(self) -> str:
        """sha256 of the text and its pair, without the target. It identifies an input."""
        return hashlib.sha256("\x1f".join([self.input, self.text_pair or ""]).encode()).hexdigest()

    @property
    def words_hash(self) -> str:
        """The same, but any white space counts as one space. Request checks compare inputs by it."""
        words = (" ".join(text.split()) for text in (self.input, self.text_pair or ""))
        return hashlib.sha256("\x1f".join(words).encode()).hexdigest()


class Sample(TextInput):
    """An input with its correct answer in `target`: a label of the model, or a text.

    Alternatively, `forget` names a wrong answer; then any other answer is correct. Pass and reference samples
    always have a target.
    """

    target: str | None = Field(default=None, min_length=1)
    forget: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _has_target_or_forget(self) -> Self:
        if (self.target is None) == (self.forget is None):
            raise ValueError("give either the correct answer in `target` or the answer to forget in `forget`")
        return self

    @property
    def forgets(self) -> bool:
        """Whether the sample names an answer to forget instead of a target."""
        return self.forget is not None

    @property
    def goal(self) -> tuple[str | None, str | None]:
        """The target and the answer to forget. Samples with the same input must agree on it."""
        return self.target, self.forget

    @property
    def answer(self) -> str:
        """The target, or the answer to forget."""
        answer = self.target if self.forget is None else self.forget
        assert answer is not None, "the validator requires one of the two"
        return answer


class GivenNeighbor(TextInput):
    """An input near an edit that must keep its answer, as the client sends it.

    With a `target`, an answer that becomes the target is also fine.
    """

    target: str | None = Field(default=None, min_length=1)


NeighborKind = Literal[
    "given",  # by the client
    "same subject",  # another question about the edit's subject
    "same relation",  # the edit's question about another subject
    "similar words",
    "shared text",  # a pair that has one text in common with the edit
    "yes/no",
    "reversed",
    "negated",
    "quoted",
    "request",  # to translate, summarize, or rewrite the edit's text
]
NeighborOrigin = Literal["client", "edit", "reference", "rule"]


class Neighbor(GivenNeighbor):
    """A near neighbor of an edit: an input that is close to it and must keep its answer.

    `origin` says where it comes from: the client, another edit of the job, the reference set, or a rule.
    """

    edit: int  # index of the edit
    kind: NeighborKind
    origin: NeighborOrigin


class Edit(Sample):
    """A correction: a sample whose answer must change, its paraphrases, and its near neighbors.

    A paraphrase replaces `input`; `text_pair`, `target`, and `forget` stay the same. A neighbor keeps its
    answer. `subject` is the part of `input` that the edit is about; None: the job finds it.
    """

    paraphrases: tuple[str, ...] = ()
    neighbors: tuple[GivenNeighbor, ...] = ()
    subject: str | None = Field(default=None, min_length=1)

    @property
    def sample(self) -> Sample:
        return Sample(input=self.input, text_pair=self.text_pair, target=self.target, forget=self.forget)

    @property
    def paraphrase_samples(self) -> tuple[Sample, ...]:
        return tuple(self.sample.model_copy(update={"input": text}) for text in self.paraphrases)


class EditBatch(Record):
    """The edit dataset of one job (SaLEM, section 3: fail, adapt, and pass samples) and its held-out parts.

    `adapt_samples` and `held_out_paraphrases` are paraphrases, each with the index of its edit. Training and
    selection never see what is in a `held_out_*` field.
    """

    edit_samples: tuple[Sample, ...]
    adapt_samples: tuple[tuple[int, Sample], ...]  # paraphrases to train on: (index of the edit, sample)
    pass_samples: tuple[Sample, ...]
    held_out_paraphrases: tuple[tuple[int, Sample], ...]
    held_out_pass_samples: tuple[Sample, ...]
    equivalents: tuple[tuple[TextInput, TextInput], ...] = ()  # pairs of other texts with the same meaning
    neighbors: tuple[Neighbor, ...] = ()  # near neighbors that training may see, to calibrate on
    held_out_neighbors: tuple[Neighbor, ...] = ()
    num_seen: int = 0  # paraphrases not held out because an earlier job trained on them

    @property
    def corrections(self) -> tuple[Sample, ...]:
        """Edit samples, then adapt samples: all samples whose answer must change."""
        return (*self.edit_samples, *(sample for _, sample in self.adapt_samples))

    @property
    def held_out_words(self) -> frozenset[str]:
        """`words_hash` of each held-out paraphrase. Augmentation must not produce these texts."""
        return frozenset(sample.words_hash for _, sample in self.held_out_paraphrases)

    @property
    def owners(self) -> tuple[int, ...]:
        """For each correction, the index of its edit."""
        return (*range(len(self.edit_samples)), *(edit for edit, _ in self.adapt_samples))

    @property
    def paraphrases(self) -> tuple[tuple[Sample, Sample], ...]:
        """Each edit sample with each of its adapt samples."""
        return tuple((self.edit_samples[edit], sample) for edit, sample in self.adapt_samples)


class ReferenceSample(Record):
    """A labeled sample registered with a hosted model, and the base's answer to it."""

    sample: Sample
    paraphrases: tuple[str, ...] = ()  # from the client, if it has any
    answer: str
    correct: bool
    held_out: bool
    fits: bool = True  # with its target, it is within the model's token limit

    @property
    def passes(self) -> bool:
        """Whether this is one of the hosted model's pass samples."""
        return self.correct and self.fits


def held_out(content_hash: str, share: float = 0.4) -> bool:
    """Whether a reference sample or a neighbor is held out. Only its content decides, so the answer never
    changes.
    """
    return int(content_hash[:8], 16) / 2**32 < share
