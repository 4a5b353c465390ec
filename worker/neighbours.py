"""Counterfactual neighbours: texts that look like a correction but ask something else.

Of a pair, one text is exchanged for another sample's; in a single text, its names, or else its longest word.
They have no target: they teach a metric which small differences do matter. None is ever trained to an answer
or counted as a measured sample. Pure functions of texts and a seeded generator.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from salem.records import TextInput
from worker.rewording import names_something


def neighbours(
    texts: Sequence[TextInput], others: Sequence[TextInput], rng: random.Random
) -> list[TextInput]:
    """Up to two neighbours of each text, made with what other texts say; none is one of the texts."""
    if not others:
        return []
    known = {text.content_hash for text in texts}
    made = [near for text in texts for near in _beside(text, rng.choice(others), rng.choice(others), rng)]
    return list({near.content_hash: near for near in made if near.content_hash not in known}.values())


def _beside(text: TextInput, one: TextInput, other: TextInput, rng: random.Random) -> list[TextInput]:
    if text.text_pair is not None and one.text_pair is not None:
        return [
            TextInput(input=text.input, text_pair=one.text_pair),
            TextInput(input=other.input, text_pair=text.text_pair),
        ]
    exchanged = _exchange(text.input.split(), one.input.split(), rng)
    return [TextInput(input=exchanged, text_pair=text.text_pair)]


def _exchange(words: list[str], source: list[str], rng: random.Random) -> str:
    """The words with those that say what they are about exchanged for the source's, as far as it has any."""
    about = [place for place in range(1, len(words)) if names_something(words[place])]
    new = [word for word in source[1:] if names_something(word)]
    if not about or not new:
        about = [max(range(len(words)), key=lambda place: len(words[place]))]
        new = [max(source, key=len)]
    start = rng.randrange(len(new))
    found = list(words)
    for step, place in enumerate(about):
        found[place] = new[(start + step) % len(new)]
    return " ".join(found)
