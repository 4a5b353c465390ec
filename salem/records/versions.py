"""Versions: their deltas, entries, per-sample results, and aliases."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Literal, NamedTuple

from pydantic import Field

from salem.records.base import EDIT_ID_PATTERN, Name, Record, Sha256
from salem.records.method import RecipeOptions
from salem.records.metrics import BrokenNeighbor, EditOutcome, Flip, Metrics
from salem.records.samples import Sample


class EditId(NamedTuple):
    """The id of an edit, such as `3.0`: the version that introduced it, and its index in that request."""

    version: int
    place: int

    def __str__(self) -> str:
        return f"{self.version}.{self.place}"

    @classmethod
    def parse(cls, text: str) -> EditId:
        """Parse an id.

        Raises:
            ValueError: the text is not an id. The message shows the form.
        """
        if not re.fullmatch(EDIT_ID_PATTERN, text):
            raise ValueError(f'"{text[:40]}" is not an edit id; write it like "3.0"')
        return cls(*map(int, text.split(".")))


class Delta(Record):
    """What a version adds to one layer: a safetensors file in the blob store, named by its sha256.

    Every later version keeps the delta in its chain. If edits are removed from it, it gets a new blob, and
    the other edits keep their ids.
    """

    layer: str
    blob: Sha256
    num_bytes: int
    kind: Literal["low_rank", "dense", "scoped"]
    rank: int | None
    metric: Sha256 | None = None  # blob of the scope metric; only for deltas with state scopes
    encoder: Sha256 | None = None  # of the scope encoder; only for deltas with text scopes
    version: int | None = None  # that introduced its edits; publication sets this and `made_in`
    made_in: int | None = None  # the version that it was trained for; later than `version` after a replay
    removed: tuple[int, ...] = ()  # indexes of the edits removed from it, ascending

    def index_of(self, entry: int) -> int:
        """The index, in the original request, of the edit behind this entry of the term."""
        for place in self.removed:
            entry += place <= entry
        return entry

    def entry_of(self, index: int) -> int:
        """The inverse of `index_of`: the entry of the term for the edit at this index."""
        return index - sum(place < index for place in self.removed)


class EntryKey(Record):
    """A text near which an entry fires: the text of its edit or of a paraphrase."""

    text: str
    radius: float  # the entry fires if the score is at least this (docs/recipes.md)
    nearest_pass_sample: str | None = None  # text of the most similar pass sample
    nearest_likeness: float | None = None  # score of that sample: an upper bound


class Entry(Sample):
    """One edit of a scoped version: the correction, and where it applies (docs/recipes.md)."""

    keys: tuple[EntryKey, ...] = ()


class ListedEntry(Entry):
    """An active entry of a version. If several entries fire on an input, the newest one answers."""

    id: str  # of its edit, such as "3.0"
    layer: str
    version: int  # that introduced it
    job_id: str | None


class VersionHeader(Record):
    """A version without its deltas, as lists show it. Version 0 is the base."""

    model: Name
    number: int = Field(ge=0)
    parent: int | None
    metrics: Metrics | None
    options: RecipeOptions | None  # of the job that made it; None for the base and for removals
    layer: str | None
    job_id: str | None
    created_at: datetime

    @property
    def reference(self) -> str:
        """How a client names it: `intents:3`."""
        return f"{self.model}:{self.number}"


class Version(VersionHeader):
    """A hosted model plus a chain of deltas. Immutable."""

    deltas: tuple[Delta, ...]  # the whole chain in order of application: the parent's come first


class ListedOutcome(EditOutcome):
    """An outcome in a list. The next page starts after `position`."""

    position: int


class ListedFlip(Flip):
    """A flip in a list. The next page starts after `position`."""

    position: int


class ListedBrokenNeighbor(BrokenNeighbor):
    """A broken neighbor in a list. The next page starts after `position`."""

    position: int


class Alias(Record):
    """A movable name for a version, such as `intents@production`."""

    model: Name
    name: Name
    version: int
    updated_at: datetime


class AliasChange(Alias):
    """One change of an alias. The next page of its history starts after `id`."""

    id: int
