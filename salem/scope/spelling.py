"""Spelling: reads a mistyped word as the word of a key that was meant.

A sentence encoder cuts a mistyped name into other pieces, so it no longer sees the name. A word that the
encoder does not know, and that is one slip away from a single word of the keys, is replaced by it. One slip
is a letter added, dropped, or replaced, or two neighbors swapped. Words are found by what is left when one
letter is deleted (the idea of symmetric deletion; Garbe, "SymSpell", 2012). Pure functions of text.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from rapidfuzz.distance import OSA

SHORTEST = 4  # letters of a word that may be mistyped
_WORD = re.compile(rf"[^\W\d_]{{{SHORTEST - 1},}}")


class Spelling:
    """The words of some texts, and how to find one of them from a mistyped form."""

    def __init__(self, texts: Iterable[str], is_known: Callable[[str], bool]) -> None:
        """`is_known`: whether a word in lower case is a word that the encoder knows as a whole."""
        self._is_known = is_known
        self._words = {word for text in texts for word in _words(text)}
        self._by_rest: defaultdict[str, set[str]] = defaultdict(set)
        for word in self._words:
            if len(word) >= SHORTEST:
                for rest in _rests(word):
                    self._by_rest[rest].add(word)

    def corrected(self, text: str) -> str:
        """The text with every mistyped word replaced; the same object if there is none."""
        return _WORD.sub(lambda found: self._meant(found[0]), text)

    def _meant(self, word: str) -> str:
        plain = word.casefold()
        if plain in self._words or self._is_known(plain):
            return word
        near = {other for rest in _rests(plain) for other in self._by_rest.get(rest, ())}
        slips = [other for other in near if OSA.distance(plain, other, score_cutoff=1) == 1]
        return slips[0] if len(slips) == 1 else word


def _words(text: str) -> Iterator[str]:
    return (found[0].casefold() for found in _WORD.finditer(text))


def _rests(word: str) -> Iterator[str]:
    """The word, and what is left of it without one of its letters."""
    yield word
    for place in range(len(word)):
        yield word[:place] + word[place + 1 :]
