"""What is kept: hosted models, versions with their deltas and entries, editors, aliases."""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from salem.records.base import EDIT_ID_PATTERN, EDITOR_ID_PATTERN, Name, Record, Sha256
from salem.records.method import EditorOptions, Layer, RecipeOptions
from salem.records.metrics import EditorMetrics, Metrics, Proportion
from salem.records.samples import Sample, Task


class FolderSource(Record):
    """A folder under the server's models root; `path` is relative and every part of it is a plain name."""

    kind: Literal["folder"] = "folder"
    path: str = Field(min_length=1, max_length=255)


class HubSource(Record):
    """A model hub's repository at a pinned commit."""

    kind: Literal["hub"] = "hub"
    id: str = Field(pattern=r"^[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?$")
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")


Source = Annotated[FolderSource | HubSource, Field(discriminator="kind")]


class ModelState(StrEnum):
    REGISTERING = "registering"
    READY = "ready"
    FAILED = "failed"


class HostedModel(Record):
    """A base model that the service serves and edits. Its weights are never written."""

    name: Name
    task: Task
    source: Source
    state: ModelState
    created_at: datetime
    sha256: Sha256 | None = None  # of the weights; known once registered
    descriptions_sha256: Sha256 | None = None  # of config, labels and tokenizer; older models lack it
    architecture: str | None = None
    num_parameters: int | None = None
    labels: tuple[str, ...] = ()  # empty where the model generates
    max_input_tokens: int | None = None
    layers: tuple[Layer, ...] = ()
    reference_accuracy: Proportion | None = None
    scope_metric: Sha256 | None = None  # blob; trained by the first scoped job, for the next ones too
    num_pass_samples: int = 0  # reference samples answered rightly, both parts
    num_held_out: int = 0


class EditId(NamedTuple):
    """How a client names one edit of a version, `3.0`: the version that brought it, and its place there."""

    version: int
    place: int

    def __str__(self) -> str:
        return f"{self.version}.{self.place}"

    @classmethod
    def parse(cls, text: str) -> EditId:
        """Read an id.

        Raises:
            ValueError: the text is none; the message shows the form.
        """
        if not re.fullmatch(EDIT_ID_PATTERN, text):
            raise ValueError(f'"{text[:40]}" is not the id of an edit: write "3.0"')
        return cls(*map(int, text.split(".")))


class Delta(Record):
    """What a version adds to one layer, as a content-addressed blob of safetensors.

    A delta stays in the chain of every later version. Where edits are removed from it, its blob is another
    one, while its edits keep their ids.
    """

    layer: str
    blob: Sha256
    num_bytes: int
    kind: Literal["low_rank", "dense", "scoped"]
    rank: int | None
    metric: Sha256 | None = None  # blob of the metric that its scopes live in
    version: int | None = None  # that brought its edits; set when it is published, like `made_in`
    made_in: int | None = None  # the version that it was trained for: later than `version` if replayed
    removed: tuple[int, ...] = ()  # ascending; places of edits that are not in it any more

    def index_of(self, entry: int) -> int:
        """The place, among the edits that it was first made of, of an entry of its term."""
        for place in self.removed:
            entry += place <= entry
        return entry

    def entry_of(self, index: int) -> int:
        """The opposite of `index_of`: the entry of its term for the edit at this place."""
        return index - sum(place < index for place in self.removed)


class EntryKey(Record):
    """One of the texts at which an entry fires: its edit's, or a paraphrase's."""

    text: str
    radius: float  # likeness from which on the entry fires (docs/recipes.md)
    nearest_pass_sample: str | None = None  # the text most like this one that is to stay as it is
    nearest_likeness: float | None = None  # an upper bound: out of reach it is the cosine


class Entry(Sample):
    """One edit of a scoped version: what it corrects, and where it fires (docs/recipes.md)."""

    keys: tuple[EntryKey, ...] = ()


class ListedEntry(Entry):
    """An entry that acts in a version. Of several that fire on an input, the newest prevails."""

    id: str  # of its edit: "3.0"
    layer: str
    version: int  # that brought it
    job_id: str | None


class Version(Record):
    """A hosted model plus deltas: immutable. Version 0 is the base and has none."""

    model: Name
    number: int = Field(ge=0)
    parent: int | None
    deltas: tuple[Delta, ...]  # in the order of application, the parent's first
    metrics: Metrics | None
    options: RecipeOptions | None  # of the job that made it; None: the base, or a removal
    layer: str | None
    job_id: str | None
    created_at: datetime

    @property
    def reference(self) -> str:
        """How a client names it: `intents:3`."""
        return f"{self.model}:{self.number}"


class Editor(Record):
    """A hypernetwork trained ahead on a corpus: turns the gradients of new edits into a delta in one pass."""

    id: str = Field(pattern=EDITOR_ID_PATTERN)
    model: Name
    name: str | None  # what people call it; need not be unique
    layer: str
    blob: Sha256
    num_bytes: int
    num_trained_on: int  # edits of the corpus
    num_held_out: int
    metrics: EditorMetrics
    options: EditorOptions
    job_id: str
    created_at: datetime


class Alias(Record):
    """A movable name for a version: `intents@production`."""

    model: Name
    name: Name
    version: int
    updated_at: datetime
