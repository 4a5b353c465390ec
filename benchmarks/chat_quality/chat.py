"""Conversations, and how the chat model reads them.

Must not know facts, edits, or methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Turn:
    """What one side says."""

    role: Literal["system", "user", "assistant"]
    content: str


Conversation = tuple[Turn, ...]


def user(text: str) -> Conversation:
    """A conversation that starts with this text. The model's own system prompt comes first."""
    return (Turn("user", text),)


def rendered(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> str:
    """The prompt that the model continues with the assistant's next turn."""
    turns = [{"role": turn.role, "content": turn.content} for turn in conversation]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert isinstance(text, str)
    return text


def last_question(conversation: Conversation) -> str:
    """What the user asked last."""
    return [turn.content for turn in conversation if turn.role == "user"][-1]


def all_rendered(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]) -> list[str]:
    """`rendered` of each."""
    return [rendered(tokenizer, conversation) for conversation in conversations]
