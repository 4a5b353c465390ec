"""Finds the turns of a user in a prompt that a chat template made.

A chat model's prompt is mostly template: a system prompt, marks, and earlier turns. What the user asked last
is a small part of it. The marks differ from model to model, so they are read off the template itself: it is
rendered with known texts, and the marks are what stands around them. Must not know edits or scopes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from salem.messages import quote

_QUESTIONS = ("SALEMFIRSTQUESTION", "SALEMSECONDQUESTION")
_ANSWER = "SALEMFIRSTANSWER"
_PRIVATE = 0xE000  # the first letter without a meaning of its own (Unicode's private use area)


@dataclass(frozen=True)
class TurnFinder:
    """The marks around a user's turn. Without marks, a prompt is one turn."""

    opening: str = ""
    closing: str = ""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> TurnFinder:
        """The marks of the tokenizer's chat template; none if it has no template or no such marks."""
        if not getattr(tokenizer, "chat_template", None):
            return cls()
        try:
            return _marks(tokenizer)
        except Exception:  # a template is a program of the model's authors, and may raise what it likes
            return cls()

    def last_user_turn(self, prompt: str) -> slice:
        """Where the last turn of a user stands in a prompt; a text without marks is a turn as a whole."""
        start = prompt.rfind(self.opening) if self.opening else -1
        if start < 0:
            return slice(0, len(prompt))
        start += len(self.opening)
        end = prompt.find(self.closing, start) if self.closing else -1
        end = len(prompt) if end < 0 else end
        turn = prompt[start:end]
        return slice(start + len(turn) - len(turn.lstrip()), start + len(turn.rstrip()))

    def question(self, prompt: str) -> str:
        """The text of the last user turn."""
        return prompt[self.last_user_turn(prompt)]

    def quote(self, prompt: str) -> str:
        """A prompt as messages show it: its last user turn in quotation marks."""
        return quote(self.question(prompt))


def _marks(tokenizer: PreTrainedTokenizerBase) -> TurnFinder:
    first, second = _QUESTIONS
    special = {str(token): chr(_PRIVATE + place) for place, token in enumerate(_special_tokens(tokenizer))}
    one = _rendered(tokenizer, [("user", first)])
    more = _rendered(tokenizer, [("user", first), ("assistant", _ANSWER), ("user", second)])
    for token, letter in special.items():  # as one letter each, so that no mark begins inside a token
        one, more = one.replace(token, letter), more.replace(token, letter)
    before, _, after = one.partition(first)
    to_answer = more.partition(first)[2].partition(_ANSWER)[0]
    to_question, _, at_end = more.partition(_ANSWER)[2].partition(second)
    opening = _shortest_opening(_common_end([before, to_question]), to_answer, set(special.values()))
    closing = _shortest_closing(_common_start([after, to_answer, at_end]), set(special.values()))
    for token, letter in special.items():
        opening, closing = opening.replace(letter, token), closing.replace(letter, token)
    return TurnFinder(opening, closing)


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Tokens that no plain text yields, the longest first."""
    tokens = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    return sorted((token for token in tokens if token.strip()), key=len, reverse=True)


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]]) -> str:
    messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in turns]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(rendered, str)
    return rendered


def _common_start(texts: Sequence[str]) -> str:
    same = (len(set(letters)) == 1 for letters in zip(*texts, strict=False))
    return texts[0][: sum(takewhile(bool, same))]


def _common_end(texts: Sequence[str]) -> str:
    return _common_start([text[::-1] for text in texts])[::-1]


def _shortest_opening(opening: str, before_answer: str, special: set[str]) -> str:
    """The end of `opening` that no assistant's turn starts with, from the beginning of a special token on."""
    own = opening[: len(opening) - len(_common_end([opening, before_answer]))]
    if not own:
        return ""  # nothing tells the two roles apart
    starts = [place for place, letter in enumerate(own) if letter in special]
    return opening[max(starts) :] if starts else opening.lstrip()


def _shortest_closing(closing: str, special: set[str]) -> str:
    """The beginning of `closing` up to its first special token."""
    ends = [place + 1 for place, letter in enumerate(closing) if letter in special]
    return closing[: min(ends)] if ends else closing.rstrip()
