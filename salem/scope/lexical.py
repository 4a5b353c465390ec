"""Lexical check: which words an input exchanges for others, as a third test beside metric and first tokens.

Two requests about different years, towns, or article numbers lie close in any pooled state. A paraphrase adds
or drops words; a different request exchanges them. So the weight counts of words that stand *in place of* the
other text's words. A misspelled word counts as the word that was meant. A negation always counts.

Words are looked up by a hash (feature hashing, Weinberger et al., ICML 2009), so a metric knows words of any
model. In scripts without spaces, each character is a word. Negations are known in English, German, French,
Spanish, Portuguese, Italian, Dutch, Japanese, Chinese, Arabic, and Hebrew.
Pure functions of text. Must not know models, scopes, or deltas.
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
from rapidfuzz.distance import OSA
from torch import Tensor

from salem.records import TextInput

WORD_BUCKETS = 2**15  # hash buckets for words
MOST_STORED = 256  # distinct words per text
COMMON = 1e-3  # a word with a larger share of all words counts as common
SHORTEST = 4  # letters of a word that may be a misspelling
_SECOND, _TRUNCATED = "|", "+"  # mark a word of the second text, and counts that lost some words
_NEGATIONS_BY_LANGUAGE = {
    "English": "no not never none nobody nothing neither nor without",
    "German": "nicht nichts nie niemals niemand kein keine keinen keinem keiner keines",
    "French": "pas jamais aucun aucune",
    "Spanish": "nunca jamás ningún ninguno ninguna nadie",
    "Portuguese": "não nenhum nenhuma ninguém",
    "Italian": "non mai nessun nessuno nessuna",
    "Dutch": "niet niets geen nooit",
    "Arabic": "لا لم لن ليس ليست ليسوا غير",
    "Hebrew": "לא אין אינו אינה אינם אינן שלא שאינו שאינה שאינם מעולם",
}
_NEGATIONS = frozenset(word for words in _NEGATIONS_BY_LANGUAGE.values() for word in words.split())
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
    (re.compile("ない|なかった|ません|なくて"), " not "),  # Japanese
    (re.compile("不(?!丹)|没有|沒有|没|沒"), " not "),  # Chinese; the name of Bhutan has the same character
)  # fmt: skip


@dataclass(frozen=True)
class WordCounts:
    """How often each word occurs in an input, in lower case; words of its second text are marked."""

    counts: Counter[str]
    is_truncated: bool = False  # whether light words were left out

    @classmethod
    def of(cls, item: TextInput) -> WordCounts:
        second = (_SECOND + word for word in split_words(item.text_pair or ""))
        return cls(Counter([*split_words(item.input), *second]))

    def exchanged_weight(self, key: WordCounts, weights: Sequence[float]) -> float:
        """The weight of the words that this text has in place of the key's.

        It is the smaller of two sums: over the words that only this text has, and over those that only the
        key has. Each surplus negation adds 1. So words that were only added, or only left out, cost nothing.
        If the key is truncated, new words that weigh no more than its lightest word cost nothing either.

        Args:
            weights: [WORD_BUCKETS] the weight of each word.
        """
        new, gone = _differing(self.counts, key.counts)
        stored = (weights[_bucket(word)] for word in key.counts if key.is_truncated and not is_negation(word))
        floor = min(stored, default=-1.0)
        return min(_weight(new, weights, floor), _weight(gone, weights)) + _surplus_negations(new, gone)

    def negation_difference(self, other: WordCounts) -> int:
        """How many negations one of the two has more than the other, text by text."""
        return _surplus_negations(*_differing(self.counts, other.counts))

    def truncated(self, weights: Sequence[float]) -> WordCounts:
        """The counts as they are stored: `MOST_STORED` words at most, negations and heavy words first."""
        if len(self.counts) <= MOST_STORED:
            return self
        ranked = sorted(self.counts, key=lambda word: (not is_negation(word), -weights[_bucket(word)], word))
        kept = Counter({word: self.counts[word] for word in ranked[:MOST_STORED]})
        return WordCounts(kept, is_truncated=True)


def split_words(text: str) -> list[str]:
    """The words of a text, in order: in lower case, with contracted negations spelled out."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    for contracted, written_out in _PLAIN:
        plain = contracted.sub(written_out, plain)
    return _WORD.findall(plain)


def numbers(text: str) -> frozenset[str]:
    """The numbers in a text, as they are written."""
    return frozenset(re.findall(r"\d+(?:[.,:/]\d+)*", unicodedata.normalize("NFKC", text)))


def is_negation(word: str) -> bool:
    return word.removeprefix(_SECOND) in _NEGATIONS


def pack_words(texts: Sequence[WordCounts]) -> Tensor:
    """Word counts as bytes of text -> [n, w] uint8, padded with zeros; w is 1 or more."""
    rows = [
        " ".join([*sorted(each.counts.elements()), *([_TRUNCATED] if each.is_truncated else [])]).encode()
        for each in texts
    ]
    width = max(map(len, rows), default=0) or 1
    return torch.tensor([list(row.ljust(width, b"\0")) for row in rows], dtype=torch.uint8).view(-1, width)


def unpack_words(rows: Tensor) -> list[WordCounts]:
    """The word counts of rows [n, w] of bytes."""
    return [_unpack_row(row) for row in _bytes(rows)]


def is_text(rows: Tensor) -> bool:
    """Whether every row [n, w] of bytes is valid UTF-8."""
    try:
        for row in _bytes(rows):
            row.decode()
    except UnicodeDecodeError:
        return False
    return True


def _bytes(rows: Tensor) -> Iterator[bytes]:
    return (row.tobytes() for row in rows.cpu().numpy())


@lru_cache(maxsize=2**14)
def _unpack_row(row: bytes) -> WordCounts:
    counts = Counter(row.rstrip(b"\0").decode().split())
    return WordCounts(counts, is_truncated=counts.pop(_TRUNCATED, 0) > 0)


def word_rarity(texts: Sequence[TextInput]) -> Tensor:
    """c / (c + the word's share of all words of these texts) -> [WORD_BUCKETS] in (0, 1]."""
    counts = torch.zeros(WORD_BUCKETS)
    for text in texts:
        _count(counts, WordCounts.of(text).counts, 1)
    return COMMON / (COMMON + counts / counts.sum().clamp(min=1))


def word_steadiness(pairs: Sequence[tuple[TextInput, TextInput]]) -> Tensor:
    """How reliably equivalent texts keep each word -> [WORD_BUCKETS] in (0, 1].

    The share of a word's occurrences that both texts of a pair have. Each word starts with one kept
    occurrence, so a word that never occurs counts as reliable.
    """
    both, either = torch.ones(WORD_BUCKETS), torch.ones(WORD_BUCKETS)
    for pair in pairs:
        one, other = (WordCounts.of(text).counts for text in pair)
        _count(both, one & other, 2)
        _count(either, one & other, 2)
        for lost in _differing(one, other):
            _count(either, lost, 1)
    return both / either


def _differing(one: Counter[str], other: Counter[str]) -> tuple[Counter[str], Counter[str]]:
    """What only one has, and what only the other has; a misspelling counts as the word that was meant."""
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
    """What no misspelling changes: the word's text (first or second) and its first letter."""
    return word[:2] if word.startswith(_SECOND) else word[:1]


def _misspelled(one: str, other: str) -> bool:
    """Whether two different words differ by one missing letter or one swap of neighbors, nothing else."""
    same_letters = len(one) != len(other) or sorted(one) == sorted(other)  # else a letter was replaced
    return same_letters and OSA.distance(one, other, score_cutoff=1) == 1


def _surplus_negations(new: Counter[str], gone: Counter[str]) -> int:
    sums = Counter[bool]()
    for words, sign in ((new, 1), (gone, -1)):
        for word, number in words.items():
            if is_negation(word):
                sums[word.startswith(_SECOND)] += sign * number
    return sum(map(abs, sums.values()))


@lru_cache(maxsize=2**16)
def _bucket(word: str) -> int:
    return zlib.crc32(word.removeprefix(_SECOND).encode()) % WORD_BUCKETS


def word_buckets(words: Iterable[str]) -> list[int]:
    """The hash bucket of each word."""
    return [_bucket(word) for word in words]


def _weight(words: Counter[str], weights: Sequence[float], floor: float = -1.0) -> float:
    """The sum of weights above a floor, without negations, which count separately."""
    weighed = ((weights[_bucket(word)], number) for word, number in words.items() if not is_negation(word))
    return sum(weight * number for weight, number in weighed if weight > floor)


def _count(sums: Tensor, words: Counter[str], times: int) -> None:
    added = torch.tensor(list(words.values()), dtype=sums.dtype)
    sums.index_add_(0, torch.tensor(word_buckets(words), dtype=torch.long), added * times)
