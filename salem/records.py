"""The glossary: every noun of the system as one frozen record.

Knows words and their shapes on the wire. Does not know tensors, SQL, HTTP or Redis; anything may import it.
Each record is JSON-serialisable (pydantic), so the same object is stored, queued, returned and printed.

Reading order: Task, Sample, Edit, EditBatch (what is to change) - Layer, LayerScore (where) -
Hyperparameters (how) - Metrics, Flip (what came of it) - HostedModel, Version, Editor, Alias, Job (what is
kept).
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StringConstraints, model_validator

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
EDIT_ID_PATTERN = r"^(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})$"
EDITOR_ID_PATTERN = r"^editor-[0-9a-f]{20}$"
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
    """An input and what is to become of it: `target` is its right answer, a label of the model or a text.

    Or there is no target, and `forget` is the one answer that is not to be given: any other will do. Pass and
    reference samples always have a target.
    """

    target: str | None = Field(default=None, min_length=1)
    forget: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _is_for_one_answer(self) -> Self:
        if (self.target is None) == (self.forget is None):
            raise ValueError("give either the right answer in target, or the one to move away from in forget")
        return self

    @property
    def forgets(self) -> bool:
        """Whether the sample is to lose its answer rather than to get one."""
        return self.forget is not None

    @property
    def becomes(self) -> tuple[str | None, str | None]:
        """Target and what is to be forgotten: two samples of one input agree where these are equal."""
        return self.target, self.forget

    @property
    def answer(self) -> str:
        """The answer that the sample is about: to be given, or to be given no more."""
        answer = self.target if self.forget is None else self.forget
        assert answer is not None, "the validator saw one of the two"
        return answer


class Edit(Sample):
    """A correction: the sample to be answered differently from now on, and the same question in other words.

    A paraphrase replaces `input`; `text_pair`, `target` and `forget` stay those of the edit.
    """

    paraphrases: tuple[str, ...] = ()

    @property
    def sample(self) -> Sample:
        return Sample(input=self.input, text_pair=self.text_pair, target=self.target, forget=self.forget)

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
    equivalents: tuple[tuple[TextInput, TextInput], ...] = ()  # other texts that ask the same, in pairs

    @property
    def corrections(self) -> tuple[Sample, ...]:
        """Edit and adapt samples, in this order: all that is to be answered differently."""
        return (*self.edit_samples, *(sample for _, sample in self.adapt_samples))


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
    RIDGE = "ridge"  # salient layer, closed form: no training
    PAPER = "paper"  # mean |gradient| layer, MEND, two objectives, nothing else

    @property
    def forgets(self) -> bool:
        """Whether it can hold what takes the place of a forgotten answer to the base's next choice."""
        return self in (Recipe.SCOPED, Recipe.MEND)


class Hyperparameters(Record):
    """Everything that shapes a delta besides the samples; stored with the version that it made."""

    model_config = ConfigDict(allow_inf_nan=False)

    recipe: Recipe = Recipe.SCOPED
    editor: str | None = Field(default=None, max_length=64)  # id; None: none trained ahead
    layer: str | None = None  # None: saliency chooses
    candidates: Literal["middle", "all"] = "middle"  # blocks to choose from; the paper: all
    trial_edits: int = Field(default=3, ge=0, le=64)  # most salient layers compared by editing them; 0: none
    seed: int = Field(default=0, ge=0, lt=2**31)
    max_steps: int = Field(default=50, ge=1, le=5_000)
    max_pass_samples: int = Field(default=2_000, ge=1, le=100_000)
    max_held_out: int = Field(default=2_000, ge=1, le=100_000)  # pass samples that drawdown is measured on
    kl_weight: float | None = Field(default=None, ge=0)  # None: the recipe's own
    margin: float = Field(default=6.0, ge=0)  # nats by which an answer is to lead; 0: plain likelihood
    extent_aware: bool = True  # whether a correction rests once it leads by the margin
    gradient_batch: int = Field(default=10, ge=1, le=1_000)  # samples whose gradients are added up for MEND
    learning_rate: float | None = Field(default=None, gt=0)  # None: the recipe's own
    scope_budget: float = Field(default=0.005, ge=0, le=1)  # share of pass samples inside any scope
    scope_budget_per_edit: float = Field(default=0.0002, ge=0, le=1)  # per edit; the smaller counts
    disagreement_weight: float = Field(default=0.5, ge=0, le=2)  # of a cosine; 0: the base is not asked
    metric_width: int = Field(default=96, ge=2, le=1_024)
    entry_rank: int | None = Field(default=None, ge=0, le=64)  # of a term beside a value; None: where needed
    rewordings: int = Field(default=1, ge=0, le=8)  # of each edit and paraphrase, that train its value
    editor_rank: int = Field(default=64, ge=1, le=1_024)
    null_space_rank: int = Field(default=200, ge=0, le=4_096)  # leading directions of pass inputs; 0: none
    max_new_tokens: int = Field(default=32, ge=32, le=512)  # no fewer than registration asks with


class EditorOptions(Record):
    """Everything that shapes an editor trained ahead besides its corpus; stored with it."""

    model_config = ConfigDict(allow_inf_nan=False)

    layer: str | None = None  # None: saliency chooses
    candidates: Literal["middle", "all"] = "middle"  # blocks to choose from
    seed: int = Field(default=0, ge=0, lt=2**31)
    num_together: int = Field(default=10, ge=1, le=32)  # edits that it learns to apply at once
    num_steps: int = Field(default=200, ge=1, le=20_000)
    kl_weight: float = Field(default=3.0, ge=0)  # of the divergence on pass samples
    learning_rate: float = Field(default=1e-3, gt=0)
    editor_rank: int = Field(default=64, ge=1, le=1_024)
    max_pass_samples: int = Field(default=1_000, ge=1, le=100_000)
    max_held_out: int = Field(default=2_000, ge=1, le=100_000)  # pass samples that drawdown is measured on
    max_new_tokens: int = Field(default=32, ge=32, le=512)


class Proportion(Record):
    """A share of `count` samples with its 95% interval. For drawdown the bounds may be negative."""

    value: float
    low: float
    high: float
    count: int


class Extent(Record):
    """How well an answer to be forgotten is known, before and after (docs/metrics.md)."""

    rank_before: float  # 1: the likeliest; of a generated answer the mean over its tokens
    rank_after: float
    probability_before: float  # of a generated answer the geometric mean over its tokens
    probability_after: float


class MeanExtent(Extent):
    """The means of `count` samples."""

    count: int


class EditOutcome(Sample):
    """One edit (or paraphrase) before and after; answers are labels or generated texts."""

    edit: int
    kind: Literal["edit", "adapt", "held_out_paraphrase"]
    before: str
    after: str
    correct: bool  # after is the target, or is not what is to be forgotten
    extent: Extent | None = None  # where the sample is to forget


class Flip(Record):
    """A held-out pass sample whose answer changed; `broken` when it was right before and is wrong now."""

    input: str
    text_pair: str | None = None
    target: str
    before: str
    after: str
    broken: bool


class Forgetting(Record):
    """The extent of forgetting, by the kind of sample; a kind that no forgetting edit has is None."""

    edit: MeanExtent
    adapt: MeanExtent | None
    held_out_paraphrase: MeanExtent | None


class Metrics(Record):
    """What a version was measured at, on samples that training never saw (docs/metrics.md)."""

    edit_accuracy: Proportion
    adapt_accuracy: Proportion | None
    generalisation: Proportion | None  # None: no held-out paraphrase; `notes` says why
    drawdown: Proportion | None  # accuracy on held-out pass samples, before minus after; None: there are none
    consistency: Proportion | None  # share of held-out pass samples whose answer did not change at all
    forgetting: Forgetting | None = None  # None: no edit forgets
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
    scope_metric: Sha256 | None = None  # blob; trained by the first scoped job, for the next ones too
    num_pass_samples: int = 0  # reference samples answered rightly, both parts
    num_held_out: int = 0


class ReferenceSample(Record):
    """A labelled sample registered with a hosted model, and how the base answers it."""

    sample: Sample
    paraphrases: tuple[str, ...] = ()  # the same in other words, where the client knows them
    answer: str
    correct: bool
    held_out: bool


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
    nearest_likeness: float | None = Field(
        default=None, validation_alias=AliasChoices("nearest_likeness", "nearest_cosine")
    )  # entries of earlier versions are stored under the second name


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
    hyperparameters: Hyperparameters | None
    layer: str | None
    job_id: str | None
    created_at: datetime

    @property
    def reference(self) -> str:
        """How a client names it: `intents:3`."""
        return f"{self.model}:{self.number}"


class EditorMetrics(Record):
    """What an editor was measured at: edits of its corpus that it was not trained on (docs/editors.md).

    Untrained is the same editor before its first step: gradient descent with the step size that serves best.
    """

    edit_accuracy: Proportion  # of held-out edits that the base answers wrongly
    generalisation: Proportion | None  # of their paraphrases; None: there are none
    drawdown: Proportion | None  # on held-out pass samples, with `num_together` edits; None: there are none
    untrained_accuracy: Proportion
    untrained_drawdown: Proportion | None
    notes: tuple[str, ...] = ()


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
    """A long task with a life of its own: hosting a model, editing it, removing edits, training an editor."""

    id: str
    kind: JobKind
    model: Name
    state: JobState
    # "waiting", "loading", "classing", "saliency", "training" or "one pass", "evaluating", "writing", "done"
    phase: str
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
    notes: tuple[str, ...] = ()  # what was seen before training: which entries of the parent it overrides


class RemoveRequest(Record):
    """What a removal job is to do: a version without some edits of its parent, as if they had never been."""

    model: Name
    parent: int
    edits: tuple[str, ...]  # ids
    alias: Name | None = None


class EditorRequest(Record):
    """What a job is to train an editor on, as stored with the job: the client's words after every check."""

    model: Name
    name: str | None = None
    edits: tuple[Edit, ...]  # the corpus
    pass_samples: tuple[Sample, ...] | None = None  # None: from the reference set
    options: EditorOptions = EditorOptions()


class RegisterRequest(Record):
    """What a registration job is to do, as stored with the job."""

    model: Name
    reference: Sha256  # blob: JSONL of samples


class Prediction(Record):
    """One answer. Scores are given for labels only, one per label."""

    output: str
    scores: dict[str, float] | None = None


class Fired(Record):
    """The entry that acted on an input."""

    entry: str  # id of its edit
    strength: float  # of its gate, in [0, 1]
    inside: float  # cosine to its nearest key minus the radius


class ExplainedPrediction(Prediction):
    """An answer with the entry behind it; None where no scope held the input."""

    fired: Fired | None


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
