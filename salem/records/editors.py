"""Editors that are trained ahead of time."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from salem.records.base import EDITOR_ID_PATTERN, Name, Record, Sha256
from salem.records.method import EditorOptions
from salem.records.metrics import EditorMetrics


class Editor(Record):
    """A hypernetwork trained on a corpus. It turns the gradients of new edits into a delta in one pass."""

    id: str = Field(pattern=EDITOR_ID_PATTERN)
    model: Name
    name: str | None  # display name; need not be unique
    layer: str
    blob: Sha256
    num_bytes: int
    num_trained_on: int  # edits of the corpus that it trained on
    num_held_out: int
    metrics: EditorMetrics
    options: EditorOptions
    job_id: str
    created_at: datetime
