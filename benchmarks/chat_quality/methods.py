"""The interface of an editing method in this benchmark, and the list of methods.

A method gets edits as a client would send them, and answers conversations. To add a rival, write what opens
it and add a line to `METHODS`. Must not know questions, kinds, or scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from benchmarks.chat_quality.chat import Conversation
from benchmarks.chat_quality.edits import ChatEdit
from benchmarks.chat_quality.model import ChatModel
from benchmarks.chat_quality.retrieval import opened_retrieval
from benchmarks.chat_quality.rivals import opened_loc_ft, opened_lora
from benchmarks.chat_quality.service import opened_service


class EditedModel(Protocol):
    """The model after a job."""

    @property
    def job_s(self) -> float:
        """Seconds that the job took. Salem's include loading the model."""

    @property
    def elsewhere(self) -> bool:
        """Whether another process answers, so that the base can answer in this one meanwhile."""

    def answers(self, conversations: Sequence[Conversation]) -> list[str]:
        """What the edited model answers to each conversation, in order."""


class Method(Protocol):
    """A method that is ready for jobs."""

    def edit(self, edits: Sequence[ChatEdit], before: Any = None) -> EditedModel:
        """Edit the base, or what an earlier job (`before`) made of it.

        Raises:
            Misconfigured: the method does not support a second job.
            EditFailed: the job failed.
        """


OURS = "salem"
METHODS: dict[str, Callable[[ChatModel], AbstractContextManager[Method]]] = {
    OURS: opened_service,
    "retrieval": opened_retrieval,
    "loc-ft-bf": opened_loc_ft,
    "lora": opened_lora,
}
