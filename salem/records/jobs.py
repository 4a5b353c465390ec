"""Jobs: their requests, their state, and their results."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

from salem.records.base import Name, Record, Sha256
from salem.records.method import EditorOptions, LayerScore, RecipeOptions
from salem.records.metrics import Forgetting, Proportion, Requirements
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
    """Why a job failed, in text that is safe to show. The traceback is only in the log."""

    code: str
    message: str
    remedy: str | None = None


class JobStatus(Record):
    """What every job reports, while it runs and after it has ended."""

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
    metrics: dict[str, float] = Field(default_factory=dict)  # so far, while the job runs
    error: JobError | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class Job(JobStatus):
    """A long task: hosting a model, editing it, removing edits, or training an editor.

    Its request (`JobRequest`) is stored separately: it can be megabytes, and clients poll the job.
    """

    result: dict[str, Any] | None = None  # as JSON: an `EditResult`, `RemovalResult`, ...


class EditRequest(Record):
    """The request of an edit job, after all checks."""

    kind: Literal[JobKind.EDIT] = JobKind.EDIT
    model: Name
    parent: int  # number of the version to edit; 0 is the base
    edits: tuple[Edit, ...]
    pass_samples: tuple[Sample, ...] | None = None  # None: from the reference set
    alias: Name | None = None  # moves to the new version at the end, unless somebody moved it meanwhile
    alias_was: int | None = None  # its version when the job was created; None: it did not exist
    options: RecipeOptions
    require: Requirements = Requirements()
    notes: tuple[str, ...] = ()  # from before training: which entries of the parent it overrides


class RemoveRequest(Record):
    """The request of a removal job: make a version without some edits of its parent."""

    kind: Literal[JobKind.REMOVE] = JobKind.REMOVE
    model: Name
    parent: int
    edits: tuple[str, ...]  # ids
    alias: Name | None = None  # as in `EditRequest`
    alias_was: int | None = None


class EditorRequest(Record):
    """The request of a job that trains an editor, after all checks."""

    kind: Literal[JobKind.TRAIN_EDITOR] = JobKind.TRAIN_EDITOR
    model: Name
    name: str | None = None
    edits: tuple[Edit, ...]  # the corpus
    pass_samples: tuple[Sample, ...] | None = None  # None: from the reference set
    options: EditorOptions = EditorOptions()


class RegisterRequest(Record):
    """The request of a registration job."""

    kind: Literal[JobKind.REGISTER] = JobKind.REGISTER
    model: Name
    reference: Sha256  # blob: JSONL of samples


JobRequest = Annotated[
    EditRequest | RemoveRequest | EditorRequest | RegisterRequest, Field(discriminator="kind")
]
"""The request of any job, as stored with it."""


class HeadlineMetrics(Record):
    """The main metrics of a version. A metric is None if nothing was measured; a note says why."""

    edit_accuracy: Proportion | None = None
    adapt_accuracy: Proportion | None = None
    generalization: Proportion | None = None
    drawdown: Proportion | None = None
    locality: Proportion | None = None
    neighborhood: Proportion | None = None
    forgetting: Forgetting | None = None
    held_out: int = 0  # number of pass samples that drawdown is measured on
    notes: tuple[str, ...] = ()


class EditorUse(Record):
    """The editor that made a delta."""

    id: str | None  # None: the job trained its own editor
    trained: Literal["ahead of time", "for this job"]


class EditResult(HeadlineMetrics):
    """The result of an edit job."""

    version: str
    failing_before: int  # number of edit samples that the parent answered incorrectly
    layer: str
    layer_reason: str
    editor: EditorUse | None  # None: the recipe uses no editor
    kind: str  # of the delta
    rank: int | None
    delta_bytes: int
    delta_sha256: Sha256
    estimated_peak_bytes: int
    worker_seconds: float
    phase_seconds: dict[str, float]  # what each phase took, except writing the version


class RemovalResult(HeadlineMetrics):
    """The result of a removal job. If no edit remains, all metrics are None."""

    version: str
    removed: tuple[str, ...]
    edits_left: int
    replayed: int  # number of deltas that were trained again
    estimated_peak_bytes: int | None = None  # None: the job trained nothing
    worker_seconds: float


class EditorResult(Record):
    """The result of a job that trains an editor."""

    editor: str
    edit_accuracy: Proportion
    generalization: Proportion | None
    drawdown: Proportion | None
    untrained_accuracy: Proportion
    untrained_drawdown: Proportion | None
    notes: tuple[str, ...]
    trained_on: int
    held_out: int
    layer: str
    layer_reason: str
    editor_bytes: int
    editor_sha256: Sha256
    estimated_peak_bytes: int
    worker_seconds: float


class RegistrationResult(Record):
    """The result of a registration job."""

    model: Name
    sha256: Sha256  # of the weights
    reference_accuracy: Proportion | None
    num_pass_samples: int
    num_held_out: int
