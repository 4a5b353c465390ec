"""Which parts of an input are compared with an edit: its question, with and without what stands around it.

For a chat model, the question is the last user turn; the template and the system prompt do not count. People
put their question behind a paragraph or small talk, so its last sentence and its last question mark count as
well. But a sentence that is quoted, or that another sentence asks to translate or to count, is not a
question. The rules for such requests are English. Pure functions of text. Must not know encoders or scopes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from salem.models.network import Network
from salem.records import TextInput

_FEWEST_WORDS = 3  # of a sentence that may be a question
_WIDE_ENDS = "\u3002\uff1f\uff01"  # full stop, question mark, and exclamation mark of Chinese and Japanese
_CLOSING = "\"'\u201d\u2019\u00bb)\\]"  # quotation marks and brackets that may follow the end of a sentence
_SENTENCE = re.compile(rf".+?(?:[.?!\u2026]+[{_CLOSING}]*(?=\s|$)|[{_WIDE_ENDS}]|$)", re.MULTILINE)
_QUESTION = re.compile(rf"[?\uff1f][{_CLOSING}]*$")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:[A-Z]|Dr|Mr|Mrs|Ms|St|Sr|Jr|Prof|Gen|Sen|Rep|vs|No|Vol|e\.g|i\.e)\.$"
)
_ABOUT_TEXT = re.compile(
    r"\b(translat\w+|summar\w+|paraphras\w+|reword\w*|rephras\w+|rewrit\w+|proofread\w*|spell\w*|repeat\w*|"
    r"quot\w+|grammar|punctuation|synonyms?|(?:this|the|next|following|above) (?:sentence|question|text)|"
    r"in (?:capital|upper|lower)|how many (?:words|letters|characters)|what language)\b",
    re.IGNORECASE,
)
_MAY_CHANGE = re.compile(
    rf"[?\uff1f:][{_CLOSING}]*$|"
    r"^(please|say|write|give|put|turn|make|count|read|convert|change|copy|list|explain|ignore|pretend)\b",
    re.IGNORECASE,
)  # questions, announcements, and requests
_QUOTES = (('"', '"'), ("`", "`"), ("\u201c", "\u201d"), ("\u00ab", "\u00bb"), ("\u300c", "\u300d"))


def question_of(network: Network, item: TextInput) -> str:
    """The text that scopes compare: the last user turn, followed by the second text of a pair."""
    question = network.turns.question(item.input)
    return f"{question}\n{item.text_pair}" if item.text_pair else question


@dataclass(frozen=True)
class View:
    """A text to compare, and the sentences next to it if they may change what it asks."""

    text: str
    context: str | None = None


def views(question: str) -> tuple[View, ...]:
    """The texts to compare: the question as a whole, then sentences that may be the actual question."""
    whole = " ".join(question.split())
    found = {view.text: view for view in [*_sentences_that_ask(question), View(whole)]}
    return tuple(reversed(found.values()))


def _sentences_that_ask(question: str) -> Iterator[View]:
    """The last sentence, and the last one with a question mark."""
    sentences = split_sentences(question)
    if len(sentences) < 2:
        return
    with_marks = [place for place, sentence in enumerate(sentences) if _QUESTION.search(sentence)]
    for place in dict.fromkeys([len(sentences) - 1, *with_marks[-1:]]):
        sentence, rest = sentences[place], " ".join(sentences[:place] + sentences[place + 1 :])
        asks = len(sentence.split()) >= _FEWEST_WORDS and not _in_quotes(sentence, rest)
        if asks and not _ABOUT_TEXT.search(rest):
            yield View(sentence, _context(sentences, place))


def _context(sentences: Sequence[str], place: int) -> str | None:
    """The sentence with those before and after it, if one of these may say what to do with it."""
    near = [*sentences[max(place - 1, 0) : place], *sentences[place + 1 : place + 2]]
    if not any(_MAY_CHANGE.search(sentence) for sentence in near):
        return None
    return " ".join(sentences[max(place - 1, 0) : place + 2])


def split_sentences(text: str) -> list[str]:
    """Sentences and lines of a text. An abbreviation does not end a sentence."""
    found: list[str] = []
    for part in filter(None, (part.strip() for part in _SENTENCE.findall(text))):
        goes_on = part[0].islower() and found and found[-1][-1] in _CLOSING
        if goes_on or (found and _ABBREVIATION.search(found[-1])):
            found[-1] = f"{found[-1]} {part}"
        else:
            found.append(part)
    return [" ".join(part.split()) for part in found]


def _in_quotes(sentence: str, rest: str) -> bool:
    """Whether a quotation begins before the sentence and ends in it or after it."""
    return any(
        (sentence + rest).count(begin) % 2 == 0 and sentence.count(begin) % 2 == 1
        if begin == end
        else rest.count(begin) > rest.count(end) or sentence.count(end) > sentence.count(begin)
        for begin, end in _QUOTES
    )
