"""Salem itself: the running service, used over HTTP like by any client.

Registers the chat model with its reference set, posts edits, waits for the jobs, and asks versions. Must not
know questions, kinds, or scores.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from app.cli.client import Client, ServiceError
from benchmarks.chat_quality.chat import Conversation
from benchmarks.chat_quality.edits import ChatEdit, as_sent, reference_set
from benchmarks.chat_quality.model import MAX_NEW_TOKENS, ChatModel, parts
from benchmarks.quality.models import CACHE, only_one
from demo.service import running_service
from salem.errors import EditFailed
from salem.records import Edit

MODEL = "chat"
TIMEOUT_S = 3_600.0  # of a request: a slow machine answers many questions in it


@dataclass(frozen=True)
class Version:
    """A version that a job made."""

    client: Client
    model: ChatModel
    reference: str  # such as chat:3
    job_s: float
    elsewhere: ClassVar[bool] = True

    def answers(self, conversations: Sequence[Conversation]) -> list[str]:
        """What the version answers, through `POST /predict`."""
        found: list[str] = []
        for part in parts(self.model.rendered(conversations)):
            body = {"model": self.reference, "inputs": part, "max_new_tokens": MAX_NEW_TOKENS}
            found += [answer["output"] for answer in self.client.post("/predict", body)["predictions"]]
        return found


@dataclass(frozen=True)
class Service:
    """A running service that hosts the chat model."""

    client: Client
    model: ChatModel
    made: dict[tuple[Any, ...], Version]  # so that a chain can start at the version of an earlier unit

    def edit(self, edits: Sequence[ChatEdit], before: Version | None = None) -> Version:
        """Post the edits and wait for the version.

        Raises:
            EditFailed: the job failed.
        """
        key = (before and before.reference, *edits)
        if key not in self.made:
            body = {"model": before.reference if before else MODEL, "edits": sent(as_sent(self.model, edits))}
            result, seconds = finished(self.client, "/edits", body)
            self.made[key] = Version(self.client, self.model, result["version"], seconds)
        return self.made[key]


@contextmanager
def opened_service(model: ChatModel) -> Iterator[Service]:
    """The service with the chat model, registered with its reference set."""
    with opened_client() as client:
        host(client, MODEL, "text-generation", model.folder.name, reference_set(model))
        yield Service(client, model, {})


@contextmanager
def opened_client() -> Iterator[Client]:
    """A client of a new, empty service whose models are in the benchmark's cache."""
    home = CACHE / "chat-quality" / "home"
    home.parent.mkdir(parents=True, exist_ok=True)
    with (
        only_one("chat-quality-service"),
        running_service(home, CACHE) as url,
        Client(url, timeout_s=TIMEOUT_S) as client,
    ):
        yield client


def host(client: Client, name: str, task: str, folder: str, reference: Sequence[Edit]) -> None:
    """Register a model of the cache with labeled samples."""
    uploaded = client.upload("/references", "".join(map(line, reference)).encode())
    body = {
        "name": name,
        "task": task,
        "source": {"kind": "folder", "path": folder},
        "reference_sha256": uploaded["sha256"],
    }
    finished(client, "/models", body)


def line(sample: Edit) -> str:
    """One line of a reference set."""
    return sample.model_dump_json(exclude_defaults=True) + "\n"


def sent(edits: Sequence[Edit]) -> list[dict[str, Any]]:
    """Edits as JSON."""
    return [edit.model_dump(mode="json", exclude_defaults=True) for edit in edits]


def finished(client: Client, path: str, body: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """Start a job and wait for it; return its result, and the seconds from the request to the end.

    Raises:
        EditFailed: the job failed, or the service refused it.
    """
    began = time.monotonic()
    try:
        job = client.wait_for_job(client.post(path, body)["id"], lambda seen: None)
    except ServiceError as error:
        raise EditFailed(" ".join([error.message, *error.places])) from error
    if job["state"] != "succeeded":
        raise EditFailed(f"The job {job['state']}: {job['error']}")
    return job["result"], time.monotonic() - began
