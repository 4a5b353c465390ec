"""Hosted models: where their weights come from, and what registration found out about them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from salem.records.base import Name, Record, Sha256
from salem.records.method import Layer
from salem.records.metrics import Proportion
from salem.records.samples import Task


class FolderSource(Record):
    """A folder under the server's models root. `path` is relative; its parts are plain names."""

    kind: Literal["folder"] = "folder"
    path: str = Field(min_length=1, max_length=255)


class HubSource(Record):
    """A repository of a model hub at a pinned commit."""

    kind: Literal["hub"] = "hub"
    id: str = Field(pattern=r"^[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?$")
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")


Source = Annotated[FolderSource | HubSource, Field(discriminator="kind")]


class ModelState(StrEnum):
    REGISTERING = "registering"
    READY = "ready"
    FAILED = "failed"


class HostedModel(Record):
    """A base model that the service serves and edits. Salem never writes to its weights."""

    name: Name
    task: Task
    source: Source
    state: ModelState
    created_at: datetime
    sha256: Sha256 | None = None  # of the weights; set by registration
    descriptions_sha256: Sha256 | None = None  # of config, labels, and tokenizer; set by registration
    architecture: str | None = None
    num_parameters: int | None = None
    labels: tuple[str, ...] = ()  # empty if the model generates text
    max_input_tokens: int | None = None
    layers: tuple[Layer, ...] = ()
    reference_accuracy: Proportion | None = None
    scope_metric: Sha256 | None = None  # blob of the newest metric; the next scoped job starts from it
    num_pass_samples: int = 0  # reference samples that the base answers correctly, including held-out ones
    num_held_out: int = 0
