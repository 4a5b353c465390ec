"""The reference samples nearest to a text, by their words."""

from __future__ import annotations

import random
from collections.abc import Sequence

from salem.records import ReferenceSample, Sample, held_out
from worker.dataset.near_samples import FEW, LONGEST, NUM_NEAREST, NUM_WORDS, NearSamples


def reference(texts: Sequence[str]) -> list[ReferenceSample]:
    samples = [Sample(input=text, target="a") for text in texts]
    return [
        ReferenceSample(sample=each, answer="a", correct=True, held_out=held_out(each.content_hash))
        for each in samples
    ]


def nearest(texts: Sequence[str], asked: str) -> list[str]:
    return [item.sample.input for item, _, _ in NearSamples(reference(texts)).nearest(asked)]


def test_samples_with_rare_words_of_the_text_come_first() -> None:
    texts = ("my card is new", "my card is lost", "the app is slow", "my card is stolen and lost")
    assert nearest(texts, "Stolen, my card!")[0] == "my card is stolen and lost"
    assert "the app is slow" not in nearest(texts, "stolen card")
    assert nearest(texts, "nothing in common") == []


def test_words_that_most_samples_have_select_none() -> None:
    texts = [f"please text{number}" for number in range(FEW + 1)]
    assert nearest(texts, "please help") == []
    assert nearest(texts, "please text7") == ["please text7"]


def test_few_samples_are_returned_whatever_the_length_of_the_text() -> None:
    words = [f"word{number}" for number in range(2 * NUM_WORDS)]
    texts = [f"{word} {number}" for number, word in enumerate(words)]
    assert len(nearest(texts, " ".join(words))) == NUM_NEAREST


def test_samples_come_with_the_subject_of_their_question() -> None:
    near = NearSamples(
        reference(["Q: Where was Ann Lee born? A:", "Q: Ann Lee " + "word " * LONGEST + "A:"]),
        lambda text: slice(text.index("Q:") + 2, text.index("A:")),
    )
    found = {(text[:11], subject) for _, text, subject in near.nearest("Ann Lee")}
    assert found == {("Where was A", "Ann Lee"), ("Ann Lee wor", "")}
    assert near.drawn(random.Random(0), 5) != [] == NearSamples([]).drawn(random.Random(0), 5)
