"""Careless typing: lower case and two typing errors.

Must not know questions or edits.
"""

from __future__ import annotations

import random
import re

NUM_ERRORS = 2
SHORTEST = 4  # letters of a word that may get an error, if there are enough such words
KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
BESIDE = {letter: beside for row in KEYBOARD for letter, beside in zip(row, row[1:] + row[-2], strict=True)}


def carelessly(text: str, rng: random.Random) -> str:
    """The text in lower case, with one typing error in each of two words."""
    lower = text.lower()
    words = [found.span() for found in re.finditer(r"[^\W\d_]+", lower)]
    long = [span for span in words if span[1] - span[0] >= SHORTEST]
    chosen = rng.sample(long if len(long) >= NUM_ERRORS else words, min(NUM_ERRORS, len(words)))
    for start, end in sorted(chosen, reverse=True):
        lower = lower[:start] + _with_error(lower[start:end], rng) + lower[end:]
    return lower


def _with_error(word: str, rng: random.Random) -> str:
    """The word with two letters exchanged, a letter left out or doubled, or the key beside it."""
    place = rng.randrange(max(1, len(word) - 1))
    before, letter, after = word[:place], word[place], word[place + 1 :]
    kinds = [before + letter + letter + after, before + BESIDE.get(letter, "e") + after]
    if len(word) > 1:
        kinds.append(before + after)
    if after and after[0] != letter:
        kinds.append(before + after[0] + letter + after[1:])
    return rng.choice(kinds)
