"""Which words an input has: the third thing that tells edits apart, where meanings hardly differ.

Two requests that name another year, another town or another article number lie next to each other in any
pooled state. What one of them has *in place of* the other's words is weighed: a rewording adds words or
leaves some out, a twin exchanges them. Two things are not taken for what they look like: a misspelt word is
the word that was meant, and a negation turns a request round though nothing stands in its place.

A *wording* is an input's words, each as often as it comes. What a word tells is looked up by a hash of it
(feature hashing, Weinberger et al., ICML 2009), so that a metric knows words of any model and language; the
list of negations is English. Pure functions of text. Does not know models, scopes or deltas.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from salem.records import TextInput

NUMBERS = 2**15  # of words, by their hash
KEPT = 64  # different words, where a wording is stored
COMMON = 1e-3  # share of all words from which on a word counts as common
SHORTEST = 4  # letters of a word that may be a misspelling
_SECOND = "|"  # marks the words of a second text
_NEGATIONS = frozenset(("no", "not", "never", "none", "nobody", "nothing", "neither", "nor", "without"))
_WORD = re.compile(r"\w+")
_CONTRACTED = re.compile("n['\N{RIGHT SINGLE QUOTATION MARK}]t\\b")


@dataclass(frozen=True)
class Wording:
    """The words of one input, in lower case; those of its second text are marked."""

    words: Counter[str]

    @classmethod
    def of(cls, item: TextInput) -> Wording:
        second = (_SECOND + word for word in _split(item.text_pair or ""))
        return cls(Counter([*_split(item.input), *second]))

    @property
    def negations(self) -> int:
        """How many there are."""
        return sum(number for word, number in self.words.items() if _negates(word))

    def exchanged(self, key: Wording, weights: Tensor) -> float:
        """How much of this wording stands in place of what a key has.

        The lighter of two sums of weights: of the words that only this has, and of those that only the key
        has; and 1 for each negation that one has more than the other. Words that were only added, or only
        left out, tell nothing. What is no heavier than all that a shortened key has is not taken for new.

        Args:
            weights: [NUMBERS] what each word tells.
        """
        new, gone = _differing(self.words, key.words)
        floor = float(weights_of(key.words, weights).min()) if len(key.words) >= KEPT else -1.0
        return min(_weight(new, weights, floor), _weight(gone, weights)) + abs(self.negations - key.negations)

    def heaviest(self, weights: Tensor) -> Wording:
        """The wording as it is stored: `KEPT` of its words at most, those that tell most."""
        if len(self.words) <= KEPT:
            return self
        told = dict(zip(self.words, weights_of(self.words, weights).tolist(), strict=True))
        ranked = sorted(self.words, key=lambda word: (not _negates(word), -told[word], word))
        return Wording(Counter({word: self.words[word] for word in ranked[:KEPT]}))


def packed(wordings: Sequence[Wording]) -> Tensor:
    """Wordings as bytes of text -> [n, w] uint8, filled up with zeros."""
    texts = [" ".join(sorted(wording.words.elements())).encode() for wording in wordings]
    found = torch.zeros(len(texts), max(map(len, texts), default=0), dtype=torch.uint8)
    for row, text in zip(found, texts, strict=True):
        row[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else 0
    return found


def unpacked(row: Tensor) -> Wording:
    """The wording of one row [w] of bytes; what is no text has no words that an input could have."""
    text = bytes(row.tolist()).rstrip(b"\0").decode(errors="replace")
    return Wording(Counter(text.split()))


def word_weights(texts: Sequence[TextInput], pairs: Sequence[tuple[TextInput, TextInput]]) -> Tensor:
    """What each word tells when it stands in place of another -> [NUMBERS] in (0, 1].

    Its rarity among `texts`, times the square of its steadiness: the share of its occurrences in pairs of
    equivalent texts that both of them have, where one more that both have is counted for every word.
    """
    counts, both, either = torch.zeros(NUMBERS), torch.ones(NUMBERS), torch.ones(NUMBERS)
    for text in texts:
        _count(counts, Wording.of(text).words, 1)
    for one, other in ((Wording.of(first).words, Wording.of(second).words) for first, second in pairs):
        kept, lost = one & other, Counter[str]()
        for part in _differing(one, other):
            lost += part
        _count(both, kept, 2)
        _count(either, kept, 2)
        _count(either, lost, 1)
    rarity = COMMON / (COMMON + counts / counts.sum().clamp(min=1))
    return rarity * (both / either).square()


def weights_of(words: Iterable[str], weights: Tensor) -> Tensor:
    """What each of some words tells, by the weights of all numbers -> [n]."""
    return weights[_numbers(words)]


def _split(text: str) -> list[str]:
    plain = _CONTRACTED.sub(" not", text.casefold()).replace("cannot", "can not")
    return _WORD.findall(plain)


def _differing(one: Counter[str], other: Counter[str]) -> tuple[Counter[str], Counter[str]]:
    """What only the one has, and what only the other; a misspelling and the word that it is for are one."""
    new, gone = one - other, other - one
    for word in list(new):
        for meant in list(gone):
            if new[word] and gone[meant] and _misspelt(word, meant):
                shared = min(new[word], gone[meant])
                new[word] -= shared
                gone[meant] -= shared
    return +new, +gone


def _misspelt(one: str, other: str) -> bool:
    """Whether one word is the other with a letter left out or two neighbours swapped; never the first."""
    if one.startswith(_SECOND) != other.startswith(_SECOND):
        return False
    short, long = sorted((one.removeprefix(_SECOND), other.removeprefix(_SECOND)), key=len)
    if len(short) < SHORTEST or short[0] != long[0] or not (short.isalpha() and long.isalpha()):
        return False
    place = next(
        (i for i, pair in enumerate(zip(short, long, strict=False)) if pair[0] != pair[1]), len(short)
    )
    if len(long) == len(short) + 1:
        return short[place:] == long[place + 1 :]
    swapped = short[:place] + short[place : place + 2][::-1] + short[place + 2 :]
    return len(long) == len(short) and swapped == long


def _negates(word: str) -> bool:
    return word.removeprefix(_SECOND) in _NEGATIONS


def _numbers(words: Iterable[str]) -> Tensor:
    hashes = [zlib.crc32(word.removeprefix(_SECOND).encode()) % NUMBERS for word in words]
    return torch.tensor(hashes, dtype=torch.long)


def _weight(words: Counter[str], weights: Tensor, floor: float = -1.0) -> float:
    """The sum of weights above a floor; negations count apart."""
    telling = {word: number for word, number in words.items() if not _negates(word)}
    each = weights_of(telling, weights)
    return float((each * (each > floor) * torch.tensor(list(telling.values()))).sum())


def _count(sums: Tensor, words: Counter[str], times: int) -> None:
    numbers = torch.tensor(list(words.values()), dtype=sums.dtype)
    sums.index_add_(0, _numbers(words), numbers * times)
