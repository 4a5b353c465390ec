"""Rule-made augmentations: the same request as another person might type it.

Some rules change how a request is typed; one replaces a word by a synonym. They teach a metric which
differences between texts do not matter. An augmentation keeps its sample's answer and is never measured.
Pure functions of a text and a seeded generator.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from salem.models.chat import TurnFinder
from salem.records import Sample
from salem.scope.lexical import WordCounts
from worker.dataset.synonyms import SYNONYMS

MAX_DRAWS = 5
WHOLE = TurnFinder()  # the whole text is one turn

_LEADS = (
    "please",
    "hello,",
    "hi there,",
    "quick question:",
    "so",
    "well,",
    "sorry,",
    "ok",
    "tell me:",
    "again:",
)
_TAILS = ("please", "thanks", "thank you", "asap", "or what", "you know", "right")
_SMALL_WORDS = frozenset(
    (
        *("a", "an", "the", "is", "are", "was", "were", "of", "in", "on", "at", "to", "for", "and", "or"),
        *("but", "so", "just", "really", "very", "my", "your", "it", "this", "that", "i"),
    )
)


_PLAIN_WORD = re.compile(r"(?<!\w)[a-z]+(?!\w)")  # not names
Rule = Callable[[list[str], random.Random], list[str]]


def augment(
    sample: Sample,
    rng: random.Random,
    rules: Sequence[Rule] | None = None,
    turns: TurnFinder = WHOLE,
) -> Sample:
    """One augmentation of a sample's text, by two random rules; a pair keeps its second text.

    Args:
        rules: to draw from; by default those that change how a text is typed.
        turns: finds the last user turn. Only that changes; the template around it stays.
    """
    place = turns.last_user_turn(sample.input)
    words = sample.input[place].split()
    for rule in rng.sample(rules or TYPING, 2):
        words = rule(words, rng) or words
    if not words:
        return sample
    changed = sample.input[: place.start] + " ".join(words) + sample.input[place.stop :]
    return sample.model_copy(update={"input": changed})


def augment_all(
    samples: Sequence[Sample],
    rng: random.Random,
    rules: Sequence[Rule] | None = None,
    turns: TurnFinder = WHOLE,
) -> list[Sample]:
    """One augmentation of each sample, in order, with the same negations; the sample itself if none is found.

    Args:
        rules: to draw from; by default all.
        turns: finds the last user turn, the part that changes.
    """
    return [_with_same_negations(sample, rng, rules or EVERY_RULE, turns) for sample in samples]


def _with_same_negations(
    sample: Sample, rng: random.Random, rules: Sequence[Rule], turns: TurnFinder
) -> Sample:
    own = WordCounts.of(sample)
    drawn = (augment(sample, rng, rules, turns) for _ in range(MAX_DRAWS))
    return next((found for found in drawn if not WordCounts.of(found).negation_difference(own)), sample)


def _drop_words(words: list[str], rng: random.Random) -> list[str]:
    return [word for word in words if _is_name_or_number(word) or rng.random() > 0.15]


def _drop_small_words(words: list[str], rng: random.Random) -> list[str]:
    return [word for word in words if word.lower() not in _SMALL_WORDS or rng.random() < 0.3]


def _keep_half(words: list[str], rng: random.Random) -> list[str]:
    """One half of a long text, because a long text often makes its point twice."""
    if len(words) < 12:
        return words
    middle = rng.randrange(len(words) // 3, 2 * len(words) // 3)
    return words[:middle] if rng.random() < 0.5 else words[middle:]


def _is_name_or_number(word: str) -> bool:
    """Without its names and numbers, a text is about something else."""
    return word[:1].isupper() or any(character.isdigit() for character in word)


def _swap_neighbors(words: list[str], rng: random.Random) -> list[str]:
    if len(words) < 3:
        return words
    place = rng.randrange(len(words) - 1)
    return [*words[:place], words[place + 1], words[place], *words[place + 2 :]]


def _mistype(words: list[str], rng: random.Random) -> list[str]:
    long_ones = [index for index, word in enumerate(words) if len(word) > 4 and not _is_name_or_number(word)]
    if not long_ones:
        return words
    index = rng.choice(long_ones)
    cut = rng.randrange(1, len(words[index]) - 1)
    return [*words[:index], words[index][:cut] + words[index][cut + 1 :], *words[index + 1 :]]


def _lower(words: list[str], rng: random.Random) -> list[str]:
    return [word.lower().strip(".,!?") or word for word in words]


def _lead(words: list[str], rng: random.Random) -> list[str]:
    return [rng.choice(_LEADS), *words]


def _tail(words: list[str], rng: random.Random) -> list[str]:
    return [*words, rng.choice(_TAILS)]


def _exchange_synonym(words: list[str], rng: random.Random) -> list[str]:
    """Replace one word by a synonym; punctuation that is attached to it stays."""
    known = [(place, found) for place, word in enumerate(words) if (found := _PLAIN_WORD.search(word))]
    known = [(place, found) for place, found in known if found.group() in SYNONYMS]
    if not known:
        return words
    place, found = rng.choice(known)
    other = rng.choice(SYNONYMS[found.group()])
    word = words[place]
    return [*words[:place], word[: found.start()] + other + word[found.end() :], *words[place + 1 :]]


TYPING: tuple[Rule, ...] = (
    _drop_words,
    _drop_small_words,
    _keep_half,
    _swap_neighbors,
    _mistype,
    _lower,
    _lead,
    _tail,
)
EVERY_RULE = (*TYPING, _exchange_synonym)
