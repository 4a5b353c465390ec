"""Edits and the reference set, as a client sends them.

Must not know methods, kinds of questions, or scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.chat_quality.chat import Conversation, user
from benchmarks.chat_quality.facts import Fact
from benchmarks.chat_quality.model import ChatModel
from benchmarks.chat_quality.relations import table
from salem.records import Edit

REFERENCE_TOKENS = 32  # registration compares answers of this length


@dataclass(frozen=True)
class ChatEdit:
    """An edit: the question as the user's turn, the answer, and perhaps a paraphrase of the question."""

    question: str
    target: str
    paraphrases: tuple[str, ...]


def chat_edits(edits: Sequence[Fact]) -> list[ChatEdit]:
    """The facts as edits. Every second one has a paraphrase, written by rule."""
    return [
        ChatEdit(fact.question, fact.target, (paraphrase(fact, place),) if place % 2 == 0 else ())
        for place, fact in enumerate(edits)
    ]


def paraphrase(fact: Fact, place: int) -> str:
    """The question of the edit at a place of a job in other words, by rule."""
    rules = table("surroundings")["completions" if fact.is_statement else "paraphrases"]
    rule: str = rules[place // 2 % len(rules)]
    return rule.format(question=fact.question)


def open_prompts(kind: str) -> list[str]:
    """The `measured` prompts, or those of the `reference` set."""
    return [prompt for prompts in table("open_prompts")[kind].values() for prompt in prompts]


def as_sent(model: ChatModel, edits: Sequence[ChatEdit]) -> list[Edit]:
    """Edits in the form of the API: every text is a prompt in the chat template."""
    return [
        Edit(
            input=prompt,
            target=edit.target,
            paraphrases=tuple(model.rendered([user(text) for text in edit.paraphrases])),
        )
        for edit, prompt in zip(edits, model.rendered([user(e.question) for e in edits]), strict=True)
    ]


def reference_set(model: ChatModel) -> list[Edit]:
    """Open prompts and questions with the base's own answers. None of the measured prompts is among them."""
    conversations: list[Conversation] = [user(prompt) for prompt in open_prompts("reference")]
    answers = model.base_answers(conversations, REFERENCE_TOKENS)
    return [
        Edit(input=prompt, target=answer)
        for prompt, answer in zip(model.rendered(conversations), answers, strict=True)
        if answer
    ]
