"""The glossary: every noun of the system as one frozen record.

Knows words and their shapes on the wire. Does not know tensors, SQL, HTTP or Redis; anything may import it.
Each record is JSON-serialisable (pydantic), so the same object is stored, queued, returned and printed.

Reading order: Task, Sample, Edit, EditBatch (what is to change) - Layer, LayerScore (where) -
Hyperparameters (how) - Metrics, Flip (what came of it) - HostedModel, Version, Alias, Job (what is kept).
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """Base of every record: immutable, strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Task(StrEnum):
    """What a hosted model does with a text."""

    SEQUENCE_CLASSIFICATION = "sequence-classification"
    TEXT2TEXT_GENERATION = "text2text-generation"
    TEXT_GENERATION = "text-generation"

    @property
    def generates(self) -> bool:
        """True where the answer is free text, False where it is one of the model's labels."""
        return self is not Task.SEQUENCE_CLASSIFICATION


class TextInput(Record):
    """What a hosted model is asked: one text, or a pair (premise and hypothesis, question and passage)."""

    input: str = Field(min_length=1)
    text_pair: str | None = None

    @property
    def content_hash(self) -> str:
        """sha256 of the text (and its pair): the identity of an input, whatever its target is."""
        return hashlib.sha256("\x1f".join([self.input, self.text_pair or ""]).encode()).hexdigest()


class Sample(TextInput):
    """An input with its right answer: a label of the model, or a text."""

    target: str = Field(min_length=1)


class Edit(Sample):
    """A correction: the sample to be answered differently from now on, and the same question in other words.

    A paraphrase replaces `input`; `text_pair` and `target` stay those of the edit.
    """

    paraphrases: tuple[str, ...] = ()

    @property
    def sample(self) -> Sample:
        return Sample(input=self.input, text_pair=self.text_pair, target=self.target)

    @property
    def paraphrase_samples(self) -> tuple[Sample, ...]:
        return tuple(self.sample.model_copy(update={"input": text}) for text in self.paraphrases)


class EditBatch(Record):
    """The edit dataset of one job (SaLEM, section 3: fail, adapt, pass samples), its held-out parts apart.

    `adapt_samples` and `held_out_paraphrases` carry the index of the edit that they reword, so that
    figures can be given per edit. Nothing in a `held_out_*` field is ever seen in training or selection.
    """

    edit_samples: tuple[Sample, ...]
    adapt_samples: tuple[tuple[int, Sample], ...]  # (index of the edit, sample)
    pass_samples: tuple[Sample, ...]
    held_out_paraphrases: tuple[tuple[int, Sample], ...]
    held_out_pass_samples: tuple[Sample, ...]


class Layer(Record):
    """A candidate for editing: one weight matrix inside one block of one stack.

    `path` is the module path from the model's root, e.g. `bert.encoder.layer.2.output.dense`.
    A Conv1D (GPT-2) stores its weight as [d_in, d_out]; `transposed` says so. Deltas are [d_out, d_in].
    """

    path: str
    stack: str  # path of the list of blocks: "bert.encoder.layer", "decoder.block"
    block: int
    matrix: str  # path inside the block: "output.dense"
    d_in: int
    d_out: int
    transposed: bool


class LayerScore(Record):
    """The saliency of one layer: mean |gradient| over its parameters and over samples (SaLEM, section 3)."""

    layer: str
    block: int
    matrix: str
    score: float
    chosen: bool = False


class Recipe(StrEnum):
    """How a delta is made from an edit dataset; docs/recipes.md says when to take which."""

    SCOPED = "scoped"  # an entry per edit that acts only inside its scope
    MEND = "mend"  # salient layer, MEND, many pass samples, null-space projection
    PAPER = "paper"  # mean |gradient| layer, MEND, two objectives, nothing else


class Hyperparameters(Record):
    """Everything that shapes a delta besides the samples; stored with the version that it made."""

    model_config = ConfigDict(allow_inf_nan=False)

    recipe: Recipe = Recipe.SCOPED
    layer: str | None = None  # None: saliency chooses
    candidates: Literal["middle", "all"] = "middle"  # blocks to choose from; the paper: all
    seed: int = Field(default=0, ge=0, lt=2**31)
    max_steps: int = Field(default=50, ge=1, le=5_000)
    max_pass_samples: int = Field(default=2_000, ge=1, le=100_000)
    max_held_out: int = Field(default=2_000, ge=1, le=100_000)  # pass samples that drawdown is measured on
    kl_weight: float = Field(default=3.0, ge=0)
    margin: float = Field(default=6.0, ge=0)  # nats by which an answer is to lead; 0: plain likelihood
    gradient_batch: int = Field(default=10, ge=1, le=1_000)  # samples whose gradients are added up for MEND
    learning_rate: float | None = Field(default=None, gt=0)  # None: the recipe's own
    scope_budget: float = Field(default=0.015, ge=0, le=1)  # share of pass samples inside any scope
    scope_budget_per_edit: float = Field(default=0.001, ge=0, le=1)  # per edit; the smaller counts
    metric_width: int = Field(default=96, ge=2, le=1_024)
    entry_rank: int | None = Field(default=None, ge=0, le=64)  # of an entry's term; None: by task
    editor_rank: int = Field(default=64, ge=1, le=1_024)
    null_space_rank: int = Field(default=200, ge=0, le=4_096)  # leading directions of pass inputs; 0: none
    max_new_tokens: int = Field(default=32, ge=32, le=512)  # no fewer than registration asks with


class Proportion(Record):
    """A share of `count` samples with its 95% interval. For drawdown the bounds may be negative."""

    value: float
    low: float
    high: float
    count: int


class EditOutcome(Record):
    """One edit (or paraphrase) before and after; answers are labels or generated texts."""

    edit: int
    kind: Literal["edit", "adapt", "held_out_paraphrase"]
    input: str
    text_pair: str | None = None
    target: str
    before: str
    after: str
    correct: bool


class Flip(Record):
    """A held-out pass sample whose answer changed; `broken` when it was right before and is wrong now."""

    input: str
    text_pair: str | None = None
    target: str
    before: str
    after: str
    broken: bool


class Metrics(Record):
    """What a version was measured at, on samples that training never saw (docs/metrics.md)."""

    edit_accuracy: Proportion
    adapt_accuracy: Proportion | None
    generalisation: Proportion | None  # None: no held-out paraphrase; `notes` says why
    drawdown: Proportion | None  # accuracy on held-out pass samples, before minus after; None: there are none
    consistency: Proportion | None  # share of held-out pass samples whose answer did not change at all
    protocol: Literal["argmax", "free generation"]
    outcomes: tuple[EditOutcome, ...]
    flips: tuple[Flip, ...]
    notes: tuple[str, ...] = ()


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
    architecture: str | None = None
    num_parameters: int | None = None
    labels: tuple[str, ...] = ()  # empty where the model generates
    max_input_tokens: int | None = None
    layers: tuple[Layer, ...] = ()
    reference_accuracy: Proportion | None = None
    num_pass_samples: int = 0  # reference samples answered rightly, both parts
    num_held_out: int = 0


class ReferenceSample(Record):
    """A labelled sample registered with a hosted model, and how the base answers it."""

    sample: Sample
    answer: str
    correct: bool
    held_out: bool


class Delta(Record):
    """What a version adds to one layer, as a content-addressed blob of safetensors."""

    layer: str
    blob: Sha256
    num_bytes: int
    kind: Literal["low_rank", "dense", "scoped"]
    rank: int | None


class Version(Record):
    """A hosted model plus deltas: immutable. Version 0 is the base and has none."""

    model: Name
    number: int = Field(ge=0)
    parent: int | None
    deltas: tuple[Delta, ...]  # in the order of application, the parent's first
    metrics: Metrics | None
    hyperparameters: Hyperparameters | None
    layer: str | None
    job_id: str | None
    created_at: datetime

    @property
    def reference(self) -> str:
        """How a client names it: `intents:3`."""
        return f"{self.model}:{self.number}"


class Alias(Record):
    """A movable name for a version: `intents@production`."""

    model: Name
    name: Name
    version: int
    updated_at: datetime


class JobKind(StrEnum):
    REGISTER = "register"
    EDIT = "edit"


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
    """A long task with a life of its own: registering a model, editing one."""

    id: str
    kind: JobKind
    model: Name
    state: JobState
    phase: str  # "waiting", "loading", "classing", "saliency", "training", "evaluating", "writing", "done"
    progress: float = Field(ge=0, le=1)
    time_left_s: float | None = None
    attempt: int = 0
    request: dict[str, Any]
    saliency: tuple[LayerScore, ...] = ()
    metrics: dict[str, float] = {}  # the figures so far, while running
    result: dict[str, Any] | None = None  # an edit: {"version": "intents:3", ...}
    error: JobError | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class EditRequest(Record):
    """What an edit job is to do, as stored with the job: the client's words after every check."""

    model: Name
    parent: int  # the version edited; 0 is the base
    edits: tuple[Edit, ...]
    pass_samples: tuple[Sample, ...] | None = None  # None: from the reference set
    alias: Name | None = None  # moved to the new version at the end
    hyperparameters: Hyperparameters = Hyperparameters()


class RegisterRequest(Record):
    """What a registration job is to do, as stored with the job."""

    model: Name
    reference: Sha256  # blob: JSONL of samples


class Prediction(Record):
    """One answer. Scores are given for labels only, one per label."""

    output: str
    scores: dict[str, float] | None = None


class ModelReference(Record):
    """What a client writes to name a version: `intents`, `intents:3` or `intents@production`.

    A bare name means the base, `intents:0`.
    """

    model: Name
    number: int | None = None
    alias: Name | None = None

    @classmethod
    def parse(cls, text: str) -> ModelReference:
        """Split a reference.

        Raises:
            ValueError: the text is none of the three forms; the message shows them.
        """
        match = re.fullmatch(r"([^:@]+)(?::([0-9]{1,9})|@([^:@]+))?", text)
        parts = match.groups() if match else ()
        names = [part for part in (parts[0], parts[2]) if part] if parts else []
        if not names or not all(re.fullmatch(NAME_PATTERN, name) for name in names):
            raise ValueError(f'"{text}" is not a model reference: write "name", "name:3" or "name@alias"')
        return cls(model=parts[0], number=int(parts[1]) if parts[1] else None, alias=parts[2])


def held_out(content_hash: str, share: float = 0.4) -> bool:
    """Whether a reference sample belongs to the held-out part: decided by its content, once and for ever."""
    return int(content_hash[:8], 16) / 2**32 < share
