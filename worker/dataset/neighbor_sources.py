"""The sources of an edit's near neighbors: reference samples, other edits of the job, and rules.

Must not know how many neighbors are wanted, or what they are for. Start with `candidates`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest

from salem.records import Edit, Neighbor, NeighborKind, NeighborOrigin, TextInput
from worker.dataset import question_forms as forms
from worker.dataset.near_samples import NearSamples
from worker.dataset.subjects import contains, content_words, exchange, find_subject

NUM_OTHERS = 8  # other edits or reference samples that lend their subject or their frame
LONGEST = 400  # characters of a text that rules rewrite
SAME_RELATION = 0.6  # share of the words besides the subject that two questions of one relation share
PER_RULE = 3  # neighbors of one edit by one rule
MOST_NEGATED_WORDS = 15  # of a classifier's text: negating a verb in a longer one seldom changes its label


@dataclass(frozen=True)
class Topic:
    """An edit, its question without what stands around it, and the subject of that question."""

    index: int
    edit: Edit
    before: str
    text: str
    after: str
    subject: str

    @classmethod
    def of(cls, index: int, edit: Edit, near: NearSamples) -> Topic:
        place = near.question(edit.input)
        text = edit.input[place]
        paraphrases = [other[near.question(other)] for other in edit.paraphrases]
        subject = edit.subject if edit.subject and edit.subject in text else None
        return cls(
            index,
            edit,
            before=edit.input[: place.start],
            text=text.strip(),
            after=edit.input[place.stop :],
            subject=subject or find_subject(text, paraphrases, near.counts),
        )

    def neighbor(self, text: str, kind: NeighborKind, origin: NeighborOrigin) -> Neighbor:
        """The edit's input with another question in it."""
        whole = f"{self.before}{text}{self.after}"
        pair = self.edit.text_pair
        return Neighbor(input=whole, text_pair=pair, edit=self.index, kind=kind, origin=origin)

    def like(self, item: TextInput, kind: NeighborKind, origin: NeighborOrigin) -> Neighbor:
        """Another input as it is."""
        return Neighbor(input=item.input, text_pair=item.text_pair, edit=self.index, kind=kind, origin=origin)

    def asks_the_same(self, text: str, subject: str) -> bool:
        """Whether another question seems to be of the same relation: it shares most words but subjects."""
        own, theirs = (
            content_words(exchange(whole, name, "") if name else whole)
            for whole, name in ((self.text, self.subject), (text, subject))
        )
        return len(own & theirs) > SAME_RELATION * min(len(own), len(theirs))

    def may_ask_the_same(self, text: str, subject: str) -> bool:
        """The same, or it asks for the same kind of thing: then it may ask the same in other words."""
        return self.asks_the_same(text, subject) or forms.asked_for(text) == forms.asked_for(self.text)


def candidates(
    topic: Topic, topics: Sequence[Topic], near: NearSamples, *, generates: bool
) -> Iterator[Neighbor]:
    """Candidates from every source in turn, in an order that the content of the edit decides."""
    rng = random.Random(topic.edit.content_hash)
    others = [other for other in rng.sample(topics, min(NUM_OTHERS, len(topics))) if other is not topic]
    samples = list(_near_samples(topic, near, generates=generates))
    about_subject = [each for each in samples if each.kind == "same subject"]
    sources = [iter(about_subject), iter([each for each in samples if each not in about_subject])]
    if topic.edit.text_pair:
        sources += [_negated(topic), _pairs_of_samples(topic, near), _pairs_of_edits(topic, others)]
    elif generates:
        sources += [_negated(topic), *_recombined(topic, others, near, rng), *_by_rule(topic, rng)]
    elif len(topic.text.split()) <= MOST_NEGATED_WORDS:
        sources.append(_negated(topic))
    rng.shuffle(sources)
    return _in_turn(sources)


def _in_turn(sources: Sequence[Iterator[Neighbor]]) -> Iterator[Neighbor]:
    """One neighbor of each source, then another of each, until all are used up."""
    rounds = chain.from_iterable(zip_longest(*sources))
    return (each for each in rounds if each is not None)


def _near_samples(topic: Topic, near: NearSamples, *, generates: bool) -> Iterator[Neighbor]:
    """Reference samples about the subject, in the frame, or with many of the same words.

    Those with the edit's target are left out: their answer cannot tell whether the edit reaches them.
    """
    for item, text, subject in near.nearest(topic.text, topic.edit.text_pair):
        if topic.edit.target is None or item.sample.answer.strip() != topic.edit.target.strip():
            kind: NeighborKind = "similar words"
            if topic.edit.text_pair in (None, item.sample.text_pair) and contains(text, topic.subject):
                kind = "same subject"
            elif topic.edit.text_pair and topic.edit.text_pair == item.sample.text_pair:
                kind = "shared text"
            elif generates and subject and topic.asks_the_same(text, subject):
                kind = "same relation"
            yield topic.like(item.sample, kind, "reference")


def _negated(topic: Topic) -> Iterator[Neighbor]:
    if len(topic.text) <= LONGEST and (text := forms.negated(topic.text)):
        yield topic.neighbor(text, "negated", "rule")
    pair = topic.edit.text_pair
    if pair and len(pair) <= LONGEST and (text := forms.negated(pair)):
        yield topic.neighbor(topic.text, "negated", "rule").model_copy(update={"text_pair": text})


def _pairs_of_samples(topic: Topic, near: NearSamples) -> Iterator[Neighbor]:
    found = [item.sample for item, _, _ in near.nearest(topic.text, topic.edit.text_pair)]
    return _crossed(topic, found, "reference")


def _pairs_of_edits(topic: Topic, others: Sequence[Topic]) -> Iterator[Neighbor]:
    return _crossed(topic, [other.edit for other in others], "edit")


def _crossed(topic: Topic, others: Sequence[TextInput], origin: NeighborOrigin) -> Iterator[Neighbor]:
    """One text of the edit with the other text of another pair."""
    for other in others:
        if other.text_pair:
            first = topic.like(topic.edit, "shared text", origin)
            yield first.model_copy(update={"text_pair": other.text_pair})
            yield first.model_copy(update={"input": other.input})


def _recombined(
    topic: Topic, others: Sequence[Topic], near: NearSamples, rng: random.Random
) -> list[Iterator[Neighbor]]:
    """The subject in the frames of other questions, and other subjects in the frame of the edit.

    Questions of the same relation are left out as frames: about the edit's subject, they would
    be paraphrases.
    """
    asked: list[tuple[NeighborOrigin, list[tuple[str, str]]]] = [
        ("edit", [(other.text, other.subject) for other in others]),
        ("reference", near.drawn(rng, NUM_OTHERS)),
    ]
    about_subject, about_others = [], []
    for origin, questions in asked:
        apart = [
            (text, subject)
            for text, subject in questions
            if subject and topic.subject and not _related(subject, topic.subject)
        ]
        unlike = [each for each in apart if not topic.may_ask_the_same(*each)]
        about_subject.append(_about_subject(topic, unlike, origin))
        # In this frame, an edit of the same relation in other words would have an answer of its own.
        about_others.append(_about_others(topic, apart if origin == "reference" else unlike, origin))
    return [_in_turn(about_subject), _in_turn(about_others)]


def _about_subject(
    topic: Topic, questions: Sequence[tuple[str, str]], origin: NeighborOrigin
) -> Iterator[Neighbor]:
    """Other questions, with the edit's subject in place of theirs."""
    for text, subject in questions:
        yield topic.neighbor(exchange(text, subject, topic.subject), "same subject", origin)


def _about_others(
    topic: Topic, questions: Sequence[tuple[str, str]], origin: NeighborOrigin
) -> Iterator[Neighbor]:
    """The edit's question, about the subjects of other questions."""
    for _, subject in questions:
        yield topic.neighbor(exchange(topic.text, topic.subject, subject), "same relation", origin)


def _related(one: str, other: str) -> bool:
    """Whether two subjects may be the same: one contains the other."""
    return contains(one, other) or contains(other, one)


def _by_rule(topic: Topic, rng: random.Random) -> Iterator[Iterator[Neighbor]]:
    text, subject = topic.text, topic.subject
    if len(text) > LONGEST:
        return
    yield _shuffled(topic, forms.other_questions(text, subject), "same subject", rng)
    yield _shuffled(topic, forms.other_subjects(text, subject), "same relation", rng)
    yield _shuffled(topic, forms.quoted(text), "quoted", rng)
    yield _shuffled(topic, forms.requested(text), "request", rng)
    if topic.edit.target:
        answer = forms.short_answer(text, topic.edit.target)
        yield _first(topic, forms.confirmed(text, answer), "yes/no")
        yield _first(topic, forms.reversed_forms(text, subject, answer), "reversed")


def _first(topic: Topic, texts: Iterator[str], kind: NeighborKind) -> Iterator[Neighbor]:
    """The first forms: the ones that fit the text best."""
    return (topic.neighbor(text, kind, "rule") for text in islice(texts, PER_RULE))


def _shuffled(
    topic: Topic, texts: Iterator[str], kind: NeighborKind, rng: random.Random
) -> Iterator[Neighbor]:
    every = list(texts)
    drawn = rng.sample(every, min(PER_RULE, len(every)))
    return (topic.neighbor(text, kind, "rule") for text in drawn)
