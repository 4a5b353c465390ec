"""Retrieval: a sentence encoder finds the edit that a question is about, and a system prompt states its fact.

In-context editing, as in IKE (Zheng et al., EMNLP 2023) with one retrieved fact and without demonstrations.
The encoder is all-MiniLM-L6-v2. The base answers, and its weights never change. Questions that are far from
every edit get the base's own prompt. Must not know kinds of questions or scores.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.chat_quality.chat import Conversation, Turn, last_question
from benchmarks.chat_quality.edits import ChatEdit
from benchmarks.chat_quality.model import ChatModel
from demo.classifier import base_model

THRESHOLD = 0.7  # cosine
MAX_TOKENS = 256
BATCH = 32
DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
FACT = 'Use this fact: the answer to "{question}" is {target}.'


@dataclass(frozen=True)
class Encoder:
    """all-MiniLM-L6-v2: the mean of the last states, on the unit sphere."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def loaded(cls) -> Encoder:
        folder = Path(base_model())
        return cls(AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder))

    @torch.inference_mode()
    def points(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [n, m]."""
        found = []
        for start in range(0, len(texts), BATCH):
            fields = self.tokenizer(
                list(texts[start : start + BATCH]),
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            )
            states = self.model(**fields).last_hidden_state  # [b, t, m]
            mask = fields["attention_mask"][..., None]
            found.append(F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1))
        return torch.cat(found)


@dataclass(frozen=True)
class Store:
    """The edits so far, newest last, with one or two points each."""

    model: ChatModel
    encoder: Encoder
    edits: tuple[ChatEdit, ...]
    points: Tensor  # [k, m]
    owners: tuple[int, ...]  # [k] the edit of each point
    job_s: float
    elsewhere: ClassVar[bool] = False

    def answers(self, conversations: Sequence[Conversation]) -> list[str]:
        """The base's answers, with the nearest fact in the system prompt where it is near enough."""
        base = self.model.base_answers(conversations)
        nearest = self.encoder.points([last_question(each) for each in conversations]) @ self.points.T
        cosines, keys = nearest.max(-1)  # [n]
        rows = [row for row, cosine in enumerate(cosines.tolist()) if cosine >= THRESHOLD]
        informed = [_with_fact(conversations[row], self.edits[self.owners[int(keys[row])]]) for row in rows]
        for row, answer in zip(rows, self.model.base_answers(informed), strict=True):
            base[row] = answer
        return base


@dataclass(frozen=True)
class Retrieval:
    """The method."""

    model: ChatModel
    encoder: Encoder

    def edit(self, edits: Sequence[ChatEdit], before: Store | None = None) -> Store:
        """Store the edits behind earlier ones."""
        began = time.monotonic()
        stored = (*before.edits, *edits) if before else tuple(edits)
        texts = [(text, owner) for owner, e in enumerate(stored) for text in (e.question, *e.paraphrases)]
        points = self.encoder.points([text for text, _ in texts])
        owners = tuple(owner for _, owner in texts)
        return Store(self.model, self.encoder, stored, points, owners, time.monotonic() - began)


@contextmanager
def opened_retrieval(model: ChatModel) -> Iterator[Retrieval]:
    """The method, with its encoder in memory."""
    yield Retrieval(model, Encoder.loaded())


def _with_fact(conversation: Conversation, edit: ChatEdit) -> Conversation:
    """The conversation with the fact at the end of its system prompt."""
    system = [turn.content for turn in conversation if turn.role == "system"] or [DEFAULT_SYSTEM]
    fact = FACT.format(question=edit.question, target=edit.target)
    rest = tuple(turn for turn in conversation if turn.role != "system")
    return (Turn("system", f"{system[0]}\n{fact}"), *rest)
