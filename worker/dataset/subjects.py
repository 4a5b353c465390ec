"""Finds what a text is about: its subject, a part of the text.

In order: a span with capital letters or digits, the words that a text shares with its paraphrases, its rarest
word. Pure functions of texts. Must not know edits or models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

_WORD = re.compile(r"\w+(?:['\N{RIGHT SINGLE QUOTATION MARK}.&-]\w+)*")
_BEFORE_A_SENTENCE = '.!?:;"(\N{LEFT DOUBLE QUOTATION MARK}'
_POSSESSIVE = re.compile(r"['\N{RIGHT SINGLE QUOTATION MARK}]s?$")
_CONNECTORS = frozenset(
    ("of", "the", "and", "de", "la", "le", "du", "da", "di", "del", "van", "von", "der", "den", "&")
)
_RELATION = re.compile(r"^[A-Z]{2,4} of (?=.*[A-Z])")  # "CFO of"
_VERBS = frozenset(
    ("is", "was", "are", "were", "has", "had", "does", "did", "can", "will", "belongs", "lies")
)
_COMMON = """
    a about after all am an and any are as at be been being but by can could did do does done for from get
    had has have he her here him his how i if in into is it its know like may me might more most much must my
    name need not of on one or our please she should so some tell than thank thanks that the their them then
    there these they this those to town up us was we were what when where which while who whom whose why will
    with would year you your
"""
COMMON_WORDS = frozenset(_COMMON.split())
SHORTEST = 3  # characters of a word that can be a subject without a capital letter


def find_subject(text: str, paraphrases: Sequence[str] = (), counts: Mapping[str, int] | None = None) -> str:
    """What a text is about, exactly as it stands in the text; an empty text if nothing is found.

    Args:
        paraphrases: other texts with the same meaning.
        counts: in how many texts of this kind each word in lower case occurs.
    """
    spans = names_in(text)
    shared = [span for span in spans if _in_all(span, paraphrases)]
    named = shared or ([] if paraphrases and _common_span(text, paraphrases) else spans)
    if named:
        return max(named, key=lambda span: (len(span), text.rfind(span)))
    return _common_span(text, paraphrases) or _rarest_word(text, counts or {})


def words_in(text: str) -> list[str]:
    """The words of a text in lower case, without a possessive ending."""
    return [_POSSESSIVE.sub("", word.lower()) for word in _WORD.findall(text)]


def content_words(text: str) -> frozenset[str]:
    """The words of a text that carry its meaning."""
    return frozenset(word for word in words_in(text) if word not in COMMON_WORDS)


def names_in(text: str) -> list[str]:
    """Every span of a text with capital letters or digits, in order."""
    return list(_capitalized_spans(text))


def contains(text: str, span: str) -> bool:
    """Whether a text contains a span as whole words, in upper or lower case."""
    return bool(span) and re.search(rf"(?<!\w){re.escape(span)}(?!\w)", text, re.IGNORECASE) is not None


def exchange(text: str, span: str, other: str) -> str:
    """The text with another span in place of each occurrence of this one, as whole words if it has any."""
    whole, found = re.subn(rf"(?<!\w){re.escape(span)}(?!\w)", lambda _: other, text)
    return whole if found or not span else text.replace(span, other)  # some scripts have no spaces


def _in_all(span: str, texts: Sequence[str]) -> bool:
    return all(contains(text, span) for text in texts)


def _capitalized_spans(text: str) -> Iterator[str]:
    """Names: runs of words with capital letters or digits, with small words such as "of" inside."""
    words = list(_WORD.finditer(text))
    place = 0
    while place < len(words):
        if not _is_name(text, words, place):
            place += 1
            continue
        end = last = place
        while end + 1 < len(words) and _joined(text, words, end) and _continues(words[end + 1][0]):
            end += 1
            last = end if _has_capital(words[end][0]) else last
        span = _POSSESSIVE.sub("", text[words[place].start() : words[last].end()])
        yield _RELATION.sub("", span)
        place = last + 1


def _has_capital(word: str) -> bool:
    return word[:1].isupper() or any(character.isdigit() for character in word)


def _continues(word: str) -> bool:
    return _has_capital(word) or word in _CONNECTORS


def _joined(text: str, words: Sequence[re.Match[str]], place: int) -> bool:
    """Whether a word and the next are in one name: not in "Rome's square", but in "Ann D. Lee's Career"."""
    word, following = words[place][0], words[place + 1][0]
    between = text[words[place].end() : words[place + 1].start()]
    is_initial = len(word) == 1 and between == ". "
    return (is_initial or not between.strip(" ")) and (
        not _POSSESSIVE.search(word) or _has_capital(following)
    )


def _is_name(text: str, words: Sequence[re.Match[str]], place: int) -> bool:
    """Whether a name starts here. The first word of a sentence has a capital letter in any case."""
    word = words[place]
    if not _has_capital(word[0]) or word[0] == "I":
        return False
    before = text[: word.start()].rstrip(" \t")
    starts = not before.strip() or before[-1] in _BEFORE_A_SENTENCE or before[-1] == "\n"
    if not starts or not word[0][0].isalpha():
        return True
    if word[0].lower() in COMMON_WORDS:
        return False
    next_words = [each[0] for each in words[place + 1 : place + 3]] + ["", ""]
    named = _has_capital(next_words[0]) or next_words[0] in _VERBS
    named |= next_words[0] in _CONNECTORS and _has_capital(next_words[1])
    return named or bool(_POSSESSIVE.search(word[0])) or text[word.end() :].startswith(",")


def _common_span(text: str, paraphrases: Sequence[str]) -> str:
    """The longest run of words that all paraphrases contain, without common words at its ends."""
    if not paraphrases:
        return ""
    words = list(_WORD.finditer(text))
    best = ""
    for start, first in enumerate(words):
        for last in words[start:]:
            span = text[first.start() : last.end()]
            if not _in_all(span, paraphrases):
                break
            ends = {first[0].lower(), _POSSESSIVE.sub("", last[0].lower())}
            best = span if len(span) > len(best) and not ends & COMMON_WORDS else best
    return _POSSESSIVE.sub("", best) if len(best) >= SHORTEST else ""


def _rarest_word(text: str, counts: Mapping[str, int]) -> str:
    """The rarest word of a text that carries meaning; of equally rare ones, the last."""
    candidates = [
        word
        for word in (_POSSESSIVE.sub("", found) for found in _WORD.findall(text))
        if len(word) >= SHORTEST and word.lower() not in COMMON_WORDS
    ]
    return min(reversed(candidates), key=lambda word: counts.get(word.lower(), 0), default="")
