"""Request and response bodies that are not already records of `salem.records`.

Knows their fields only; `app.validation` checks the content.
"""

from __future__ import annotations

from typing import Annotated, Generic, Literal, TypeVar

from fastapi import Header, Path, Query
from pydantic import BeforeValidator, Field

from app.validation.recipes import AnyOptions, default_options
from app.validation.samples import BOUNDED, EditIn, ReferenceSampleIn, SampleIn, TextIn, as_object
from salem.records import (
    EDITOR_ID_PATTERN,
    NAME_PATTERN,
    EditorOptions,
    EditorResult,
    EditResult,
    ExplainedPrediction,
    JobKind,
    JobStatus,
    ListedEntry,
    Name,
    Prediction,
    Record,
    RegistrationResult,
    RemovalResult,
    Requirements,
    Sha256,
    Source,
    Task,
)

JOB_ID = r"^[A-Za-z0-9_-]{1,64}$"
MAX_NUMBER = 2**31 - 1  # largest value of an integer column
ALIAS_MOVED = (
    "Alias to move to the new version when the job succeeds. If somebody moves it meanwhile, it stays there, "
    "and a note says so"
)

ItemT = TypeVar("ItemT")

ModelName = Annotated[str, Path(pattern=NAME_PATTERN, description="Name of a hosted model")]
AliasName = Annotated[str, Path(pattern=NAME_PATTERN, description="Name of an alias")]
VersionNumber = Annotated[int, Path(ge=0, le=MAX_NUMBER, description="Number of a version; 0 is the base")]
EditorId = Annotated[str, Path(pattern=EDITOR_ID_PATTERN, description="Id of an editor")]
JobId = Annotated[str, Path(pattern=JOB_ID, description="Id of a job")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        pattern=r"^[\x21-\x7e]{1,200}$",
        description="Requests with the same key and body return the same job, so you can retry safely",
    ),
]


PageSize = Annotated[int, Query(ge=1, le=1_000, description="Maximum number of items to return")]
AfterName = Annotated[
    str | None, Query(pattern=NAME_PATTERN, description="The last name of the previous page")
]
AfterNumber = Annotated[
    int | None, Query(ge=0, le=MAX_NUMBER, description="The last item of the previous page")
]
DEFAULT_PAGE = 100


class ModelIn(Record):
    """A model to host: where its weights are, and labeled samples to measure it on."""

    name: Name
    task: Task
    source: Source
    reference: Annotated[tuple[ReferenceSampleIn, ...] | None, BOUNDED] = Field(
        None, description="Labeled samples. Paraphrases are optional; they train the model's scope metric"
    )
    reference_sha256: Sha256 | None = Field(
        None, description="sha256 of a JSONL file uploaded with POST /references"
    )


class EditsIn(Record):
    """Answers to correct or forget, for a model, a version (`intents:3`), or an alias."""

    model: str = Field(
        description="A bare name is the base without edits. `intents@production` keeps production's edits"
    )
    edits: Annotated[tuple[EditIn, ...], BOUNDED]
    pass_samples: Annotated[tuple[SampleIn, ...] | None, BOUNDED] = Field(
        None, description="Samples whose answers must stay. Default: from the model's reference set"
    )
    alias: Name | None = Field(None, description=ALIAS_MOVED)
    require: Requirements = Field(
        Requirements(),
        description="Bounds on the version's metrics. If it misses one, the job fails without a version",
    )
    options: AnyOptions = Field(
        default_factory=lambda: default_options(), description="A recipe and its options (docs/recipes.md)"
    )


class EditorIn(Record):
    """A corpus of edits, and the options to train an editor on it."""

    model: str = Field(description="Name of a hosted model. The editor is trained on the base")
    name: str | None = Field(None, min_length=1, max_length=64, description="Display name")
    edits: Annotated[tuple[EditIn, ...], BOUNDED] = Field(
        description="Edits similar to the ones you expect, with paraphrases"
    )
    pass_samples: Annotated[tuple[SampleIn, ...] | None, BOUNDED] = Field(
        None, description="Samples whose answers must stay. Default: from the model's reference set"
    )
    options: EditorOptions = EditorOptions()


class PredictIn(Record):
    """Inputs for a model, a version, or an alias. A bare name is the base."""

    model: str
    inputs: Annotated[tuple[Annotated[TextIn, BeforeValidator(as_object)], ...], BOUNDED]
    max_new_tokens: int = Field(32, ge=1, le=512)
    explain: bool = Field(False, description="For each answer, say which edit matched the input")


class RemovalIn(Record):
    """Edits to remove from a version."""

    edits: Annotated[tuple[str, ...], BOUNDED] = Field(
        description='Ids of edits, such as "3.0": the version that introduced it, and its index there'
    )
    alias: Name | None = Field(None, description=ALIAS_MOVED)


class AliasIn(Record):
    """The version that an alias should point to."""

    version: int = Field(ge=0, le=MAX_NUMBER)


class PredictOut(Record):
    """Answers in the order of the inputs, and the exact version that gave them."""

    model: str
    predictions: tuple[ExplainedPrediction | Prediction, ...]
    seconds: float


class ReferenceOut(Record):
    """An uploaded reference set."""

    sha256: Sha256
    num_samples: int


class HealthOut(Record):
    """The process answers."""

    status: str
    version: str


class ReadyOut(Record):
    """What the service depends on; each is `ok`."""

    status: str
    checks: dict[str, str]


class EditJobOut(JobStatus):
    """An edit job."""

    kind: Literal[JobKind.EDIT]
    result: EditResult | None


class RemovalJobOut(JobStatus):
    """A job that removes edits."""

    kind: Literal[JobKind.REMOVE]
    result: RemovalResult | None


class EditorJobOut(JobStatus):
    """A job that trains an editor."""

    kind: Literal[JobKind.TRAIN_EDITOR]
    result: EditorResult | None


class RegistrationJobOut(JobStatus):
    """A job that registers a model."""

    kind: Literal[JobKind.REGISTER]
    result: RegistrationResult | None


JobOut = Annotated[
    EditJobOut | RemovalJobOut | EditorJobOut | RegistrationJobOut, Field(discriminator="kind")
]


class Page(Record, Generic[ItemT]):
    """One page of a list. `has_more` is true if another page follows."""

    data: tuple[ItemT, ...]
    has_more: bool = False


def page_of(found: tuple[list[ItemT], bool]) -> Page[ItemT]:
    """A page from the registry as a response."""
    items, has_more = found
    return Page(data=tuple(items), has_more=has_more)


class JobsOut(Page[JobOut]):
    """Jobs, newest first."""


class EntriesOut(Page[ListedEntry]):
    """Entries of a version. `note` says which edits have no entry, and why."""

    note: str | None = None
