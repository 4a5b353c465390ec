"""Jobs, and what clients ask them for."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

from salem.records.base import Name, Record, Sha256
from salem.records.method import EditorOptions, LayerScore, RecipeOptions
from salem.records.samples import Edit, Sample


class JobKind(StrEnum):
    REGISTER = "register"
    EDIT = "edit"
    REMOVE = "remove"
    TRAIN_EDITOR = "train_editor"


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class JobError(Record):
    """Why a job failed, in words that are safe to show: the trace is in the log only."""

    code: str
    message: str
    remedy: str | None = None


class Job(Record):
    """A long task: hosting a model, editing it, removing edits, or training an editor.

    What the client asked for is stored beside it (`JobRequest`): it can be megabytes, and a job is polled.
    """

    id: str
    kind: JobKind
    model: Name
    state: JobState
    # waiting, loading, predicting, saliency, training or "one pass", evaluating, writing, done
    phase: str
    progress: float = Field(ge=0, le=1)
    time_left_s: float | None = None
    attempt: int = 0
    saliency: tuple[LayerScore, ...] = ()
    metrics: dict[str, float] = Field(default_factory=dict)  # the figures so far, while running
    result: dict[str, Any] | None = None  # an edit: {"version": "intents:3", ...}
    error: JobError | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class EditRequest(Record):
    """The request of an edit job, after every check."""

    kind: Literal[JobKind.EDIT] = JobKind.EDIT
    model: Name
    parent: int  # the version edited; 0 is the base
    edits: tuple[Edit, ...]
    pass_samples: tuple[Sample, ...] | None = None  # None: from the reference set
    alias: Name | None = None  # moves to the new version at the end, unless somebody else has moved it
    alias_was: int | None = None  # the version it named when the job was created; None: no version
    options: RecipeOptions
    notes: tuple[str, ...] = ()  # found before training: which entries of the parent it overrides


class RemoveRequest(Record):
    """The request of a removal job: a version without some edits of its parent."""

    kind: Literal[JobKind.REMOVE] = JobKind.REMOVE
    model: Name
    parent: int
    edits: tuple[str, ...]  # ids
    alias: Name | None = None  # as in `EditRequest`
    alias_was: int | None = None


class EditorRequest(Record):
    """The request of a job that trains an editor, after every check."""

    kind: Literal[JobKind.TRAIN_EDITOR] = JobKind.TRAIN_EDITOR
    model: Name
    name: str | None = None
    edits: tuple[Edit, ...]  # the corpus
    pass_samples: tuple[Sample, ...] | None = None  # None: from the reference set
    options: EditorOptions = EditorOptions()


class RegisterRequest(Record):
    """What a registration job is to do, as stored with the job."""

    kind: Literal[JobKind.REGISTER] = JobKind.REGISTER
    model: Name
    reference: Sha256  # blob: JSONL of samples


JobRequest = Annotated[
    EditRequest | RemoveRequest | EditorRequest | RegisterRequest, Field(discriminator="kind")
]
"""What a job was asked to do, as stored with it."""
