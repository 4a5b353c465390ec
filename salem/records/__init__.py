"""The glossary: every noun of the system as one frozen record.

Knows words and their shapes on the wire. Does not know tensors, SQL, HTTP or Redis; anything may import it.
Each record is JSON-serializable (pydantic), so the same object is stored, queued, returned and printed.

Reading order: Task, Sample, Edit, EditBatch (what is to change) - Layer, LayerScore (where) -
RecipeOptions (how) - Metrics, Flip (what came of it) - HostedModel, Version, Editor, Alias, Job (what is
kept).
"""

from salem.records.base import (
    EDIT_ID_PATTERN,
    EDITOR_ID_PATTERN,
    MOST_ITEMS,
    NAME_PATTERN,
    Name,
    Record,
    Sha256,
)
from salem.records.editors import Editor
from salem.records.jobs import (
    EditorRequest,
    EditRequest,
    Job,
    JobError,
    JobKind,
    JobRequest,
    JobState,
    RegisterRequest,
    RemoveRequest,
)
from salem.records.method import (
    MOST_NEW_TOKENS,
    EditorOptions,
    Layer,
    LayerScore,
    RecipeOptions,
    SharedOptions,
)
from salem.records.metrics import (
    DetailedMetrics,
    EditorMetrics,
    EditOutcome,
    Extent,
    Flip,
    Forgetting,
    MeanExtent,
    Metrics,
    Proportion,
)
from salem.records.models import FolderSource, HostedModel, HubSource, ModelState, Source
from salem.records.predictions import (
    ExplainedPrediction,
    Match,
    ModelReference,
    Prediction,
)
from salem.records.samples import (
    Edit,
    EditBatch,
    ReferenceSample,
    Sample,
    Task,
    TextInput,
    held_out,
)
from salem.records.versions import (
    Alias,
    AliasChange,
    Delta,
    EditId,
    Entry,
    EntryKey,
    ListedEntry,
    ListedFlip,
    ListedOutcome,
    Version,
    VersionHeader,
)

__all__ = [
    "EDITOR_ID_PATTERN",
    "EDIT_ID_PATTERN",
    "MOST_ITEMS",
    "MOST_NEW_TOKENS",
    "NAME_PATTERN",
    "Alias",
    "AliasChange",
    "Delta",
    "DetailedMetrics",
    "Edit",
    "EditBatch",
    "EditId",
    "EditOutcome",
    "EditRequest",
    "Editor",
    "EditorMetrics",
    "EditorOptions",
    "EditorRequest",
    "Entry",
    "EntryKey",
    "ExplainedPrediction",
    "Extent",
    "Flip",
    "FolderSource",
    "Forgetting",
    "HostedModel",
    "HubSource",
    "Job",
    "JobError",
    "JobKind",
    "JobRequest",
    "JobState",
    "Layer",
    "LayerScore",
    "ListedEntry",
    "ListedFlip",
    "ListedOutcome",
    "Match",
    "MeanExtent",
    "Metrics",
    "ModelReference",
    "ModelState",
    "Name",
    "Prediction",
    "Proportion",
    "RecipeOptions",
    "Record",
    "ReferenceSample",
    "RegisterRequest",
    "RemoveRequest",
    "Sample",
    "Sha256",
    "SharedOptions",
    "Source",
    "Task",
    "TextInput",
    "Version",
    "VersionHeader",
    "held_out",
]
