"""Finds the reference samples nearest to a text: those that share its rarest words.

Words are weighted by their inverse document frequency (Spärck Jones, 1972). Must not know edits or models.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from salem.records import ReferenceSample
from worker.dataset.subjects import find_subject, words_in

NUM_NEAREST = 16
NUM_WORDS = 32  # the rarest words of a text; they select the samples
MOST_COMMON = 0.2  # of the samples: a word in more of them does not select any, unless they are few
FEW = 50  # samples
LONGEST = 400  # characters of a text that is searched for its subject


Question = Callable[[str], slice]
"""Where the question itself stands in an input, such as the last user turn of a chat."""


def whole_text(text: str) -> slice:
    """All of an input is the question."""
    return slice(0, len(text))


class NearSamples:
    """A reference set, searched by words."""

    def __init__(self, reference: Sequence[ReferenceSample], question: Question = whole_text) -> None:
        self.question = question
        self._reference = reference
        self._texts = [item.sample.input[question(item.sample.input)].strip() for item in reference]
        self._places: dict[str, list[int]] = defaultdict(list)  # of samples, by word
        for place, (item, text) in enumerate(zip(reference, self._texts, strict=True)):
            for word in set(words_in(f"{text} {item.sample.text_pair or ''}")):
                self._places[word].append(place)
        self.counts = {word: len(places) for word, places in self._places.items()}
        self.held_out = {item.sample.words_hash: item.held_out for item in reference}

    def nearest(self, text: str, text_pair: str | None = None) -> Iterator[tuple[ReferenceSample, str, str]]:
        """The nearest samples with a rare word of the text, each with its question and its subject.

        The subject of a long text is empty: such a text has many.
        """
        scores: Counter[int] = Counter()
        most = max(FEW, MOST_COMMON * len(self._reference))
        known = {word for word in words_in(f"{text} {text_pair or ''}") if self.counts.get(word, 0)}
        rare = sorted(known, key=lambda word: (self.counts[word], word))[:NUM_WORDS]
        for word in rare:
            if self.counts[word] <= most:
                weight = math.log(1 + len(self._reference) / self.counts[word])
                scores.update(dict.fromkeys(self._places[word], weight))
        ranked = sorted(scores, key=lambda place: (-scores[place], place))
        return self._found(ranked[:NUM_NEAREST])

    def drawn(self, rng: random.Random, number: int) -> list[tuple[str, str]]:
        """The questions and subjects of samples at random."""
        places = rng.sample(range(len(self._reference)), min(number, len(self._reference)))
        return [(text, subject) for _, text, subject in self._found(places)]

    def _found(self, places: Iterable[int]) -> Iterator[tuple[ReferenceSample, str, str]]:
        for place in places:
            text = self._texts[place]
            short = len(text) <= LONGEST
            yield self._reference[place], text, find_subject(text, (), self.counts) if short else ""
