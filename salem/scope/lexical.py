"""Which words an input has: the third thing that tells edits apart, where meanings hardly differ.

Two requests that name another year, another town or another article number lie next to each other in any
pooled state. What one of them has *in place of* the other's words is weighed: a rewording adds words or
leaves some out, a twin exchanges them. Two things are not taken for what they look like: a misspelled word is
the word that was meant, and a negation turns a request round though nothing stands in its place.

A *wording* is an input's words, each as often as it comes; of scripts that are written without spaces, its
characters. What a word tells is looked up by a hash of it (feature hashing, Weinberger et al., ICML 2009), so
that a metric knows words of any model; the list of negations is English. Pure functions of text. Does not
know models, scopes or deltas.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from salem.records import TextInput

NUMBERS = 2**15  # of words, by their hash
KEPT = 256  # different words, where a wording is stored
COMMON = 1e-3  # share of all words from which on a word counts as common
SHORTEST = 4  # letters of a word that may be a misspelling
_SECOND, _CUT = "|", "+"  # mark the words of a second text, and a wording that lost some
_NEGATIONS = frozenset(("no", "not", "never", "none", "nobody", "nothing", "neither", "nor", "without"))
# Thai, Lao, Burmese, Khmer, kana, and the characters of Chinese
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_MARKS = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c)[0] == "M")
_WORD = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])[\w{_MARKS}])+")
_AUXILIARIES = "ai|are|could|did|do|does|had|has|have|is|might|must|need|should|was|were|would"
_PLAIN = (
    (re.compile("\N{RIGHT SINGLE QUOTATION MARK}"), "'"),
    (re.compile(r"\bno\.(?= ?\d)"), "number"),
    (re.compile(r"\bcan(?:'?t|not)\b"), "can not"),
    (re.compile(r"\bwon'?t\b"), "will not"),
    (re.compile(r"\bshan'?t\b"), "shall not"),
    (re.compile(rf"\b({_AUXILIARIES})nt\b"), r"\1 not"),
    (re.compile(r"n't\b"), " not"),
)  # fmt: skip


@dataclass(frozen=True)
class Wording:
    """The words of one input, in lower case; those of its second text are marked."""

    words: Counter[str]
    is_cut: bool = False  # whether there were more words, which tell less

    @classmethod
    def of(cls, item: TextInput) -> Wording:
        second = (_SECOND + word for word in split(item.text_pair or ""))
        return cls(Counter([*split(item.input), *second]))

    def exchanged(self, key: Wording, weights: Sequence[float]) -> float:
        """How much of this wording stands in place of what a key has.

        The lighter of two sums of weights: of the words that only this has, and of those that only the key
        has; and 1 for each negation that one has more than the other. Words that were only added, or only
        left out, tell nothing. What tells no more than all that a cut key has is not taken for new.

        Args:
            weights: [NUMBERS] what each word tells.
        """
        new, gone = _differing(self.words, key.words)
        known = (weights[_number(word)] for word in key.words if key.is_cut and not negates(word))
        floor = min(known, default=-1.0)
        return min(_weight(new, weights, floor), _weight(gone, weights)) + _turned(new, gone)

    def turned(self, other: Wording) -> int:
        """How many negations one of the two has more than the other, text by text."""
        return _turned(*_differing(self.words, other.words))

    def heaviest(self, weights: Sequence[float]) -> Wording:
        """The wording as it is stored: `KEPT` of its words at most, negations and those that tell most."""
        if len(self.words) <= KEPT:
            return self
        ranked = sorted(self.words, key=lambda word: (not negates(word), -weights[_number(word)], word))
        return Wording(Counter({word: self.words[word] for word in ranked[:KEPT]}), is_cut=True)


def split(text: str) -> list[str]:
    """The words of a text, in order: in lower case, contracted negations written out."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    for contracted, written_out in _PLAIN:
        plain = contracted.sub(written_out, plain)
    return _WORD.findall(plain)


def negates(word: str) -> bool:
    """Whether a word of a wording is a negation."""
    return word.removeprefix(_SECOND) in _NEGATIONS


def packed(wordings: Sequence[Wording]) -> Tensor:
    """Wordings as bytes of text -> [n, w] uint8, filled up with zeros; w is 1 or more."""
    texts = [
        " ".join([*sorted(each.words.elements()), *([_CUT] if each.is_cut else [])]).encode()
        for each in wordings
    ]
    width = max(map(len, texts), default=0) or 1
    return torch.tensor([list(text.ljust(width, b"\0")) for text in texts], dtype=torch.uint8).view(-1, width)


def unpacked(rows: Tensor) -> list[Wording]:
    """The wordings of rows [n, w] of bytes."""
    return [_read(row) for row in _bytes(rows)]


def is_text(rows: Tensor) -> bool:
    """Whether every row [n, w] of bytes is the text of a wording."""
    try:
        for row in _bytes(rows):
            row.decode()
    except UnicodeDecodeError:
        return False
    return True


def _bytes(rows: Tensor) -> Iterator[bytes]:
    return (row.tobytes() for row in rows.cpu().numpy())


@lru_cache(maxsize=2**14)
def _read(row: bytes) -> Wording:
    words = Counter(row.rstrip(b"\0").decode().split())
    return Wording(words, is_cut=words.pop(_CUT, 0) > 0)


def word_rarity(texts: Sequence[TextInput]) -> Tensor:
    """c / (c + share of the word among all words of these texts) -> [NUMBERS] in (0, 1]."""
    counts = torch.zeros(NUMBERS)
    for text in texts:
        _count(counts, Wording.of(text).words, 1)
    return COMMON / (COMMON + counts / counts.sum().clamp(min=1))


def word_steadiness(pairs: Sequence[tuple[TextInput, TextInput]]) -> Tensor:
    """How reliably equivalent texts keep each word -> [NUMBERS] in (0, 1].

    The share of a word's occurrences in pairs that both texts of the pair have; one more occurrence that was
    kept is counted for every word, so that one which was never seen counts as steady.
    """
    both, either = torch.ones(NUMBERS), torch.ones(NUMBERS)
    for pair in pairs:
        one, other = (Wording.of(text).words for text in pair)
        _count(both, one & other, 2)
        _count(either, one & other, 2)
        for lost in _differing(one, other):
            _count(either, lost, 1)
    return both / either


def _differing(one: Counter[str], other: Counter[str]) -> tuple[Counter[str], Counter[str]]:
    """What only the one has, and what only the other; a misspelling and the word that it is for are one."""
    new, gone = one - other, other - one
    if not new or not gone:
        return new, gone
    meant: dict[tuple[str, int], list[str]] = {}
    for word in sorted(filter(_may_be_misspelled, gone)):
        meant.setdefault((_beginning(word), len(word)), []).append(word)
    for word in sorted(filter(_may_be_misspelled, new)) if meant else ():
        for length in (len(word) - 1, len(word), len(word) + 1):
            for alike in meant.get((_beginning(word), length), ()):
                if _misspelled(word, alike):
                    shared = min(new[word], gone[alike])
                    new[word] -= shared
                    gone[alike] -= shared
    return +new, +gone


@lru_cache(maxsize=2**16)
def _may_be_misspelled(word: str) -> bool:
    plain = word.removeprefix(_SECOND)
    return len(plain) >= SHORTEST and plain.isalpha()


def _beginning(word: str) -> str:
    """What no misspelling changes: which text a word is of, and its first letter."""
    return word[:2] if word.startswith(_SECOND) else word[:1]


def _misspelled(one: str, other: str) -> bool:
    """Whether one of two words that begin alike lacks a letter of the other, or has neighbors swapped."""
    short, long = (one, other) if len(one) < len(other) else (other, one)
    place = next((at for at, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    if len(long) > len(short):
        return short[place:] == long[place + 1 :]
    return short[:place] + short[place : place + 2][::-1] + short[place + 2 :] == long


def _turned(new: Counter[str], gone: Counter[str]) -> int:
    sums = Counter[bool]()
    for words, sign in ((new, 1), (gone, -1)):
        for word, number in words.items():
            if negates(word):
                sums[word.startswith(_SECOND)] += sign * number
    return sum(map(abs, sums.values()))


@lru_cache(maxsize=2**16)
def _number(word: str) -> int:
    return zlib.crc32(word.removeprefix(_SECOND).encode()) % NUMBERS


def numbers(words: Iterable[str]) -> list[int]:
    """By which number what each word tells is looked up."""
    return [_number(word) for word in words]


def _weight(words: Counter[str], weights: Sequence[float], floor: float = -1.0) -> float:
    """The sum of weights above a floor; negations count apart."""
    told = ((weights[_number(word)], number) for word, number in words.items() if not negates(word))
    return sum(weight * number for weight, number in told if weight > floor)


def _count(sums: Tensor, words: Counter[str], times: int) -> None:
    added = torch.tensor(list(words.values()), dtype=sums.dtype)
    sums.index_add_(0, torch.tensor(numbers(words), dtype=torch.long), added * times)
