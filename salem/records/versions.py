"""Versions: their deltas and entries, the results of each sample, and the aliases that name them."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Literal, NamedTuple

from pydantic import Field

from salem.records.base import EDIT_ID_PATTERN, Name, Record, Sha256
from salem.records.method import RecipeOptions
from salem.records.metrics import EditOutcome, Flip, Metrics
from salem.records.samples import Sample


class EditId(NamedTuple):
    """The id of an edit, such as `3.0`: the version that introduced it, and its place in that request."""

    version: int
    place: int

    def __str__(self) -> str:
        return f"{self.version}.{self.place}"

    @classmethod
    def parse(cls, text: str) -> EditId:
        """Read an id.

        Raises:
            ValueError: the text is not an id; the message shows the form.
        """
        if not re.fullmatch(EDIT_ID_PATTERN, text):
            raise ValueError(f'"{text[:40]}" is not the id of an edit: write "3.0"')
        return cls(*map(int, text.split(".")))


class Delta(Record):
    """What a version adds to one layer: a safetensors file in the blob store, named by its sha256.

    Every later version keeps the delta in its chain. Removing edits from it gives it another blob, and the
    other edits keep their ids.
    """

    layer: str
    blob: Sha256
    num_bytes: int
    kind: Literal["low_rank", "dense", "scoped"]
    rank: int | None
    metric: Sha256 | None = None  # blob of the scope metric; scoped deltas only
    version: int | None = None  # the version that introduced its edits; set at publication, like `made_in`
    made_in: int | None = None  # the version it was trained for: later than `version` if it was replayed
    removed: tuple[int, ...] = ()  # places of the edits removed from it, ascending

    def index_of(self, entry: int) -> int:
        """The place in the original request of the edit behind this entry of its term."""
        for place in self.removed:
            entry += place <= entry
        return entry

    def entry_of(self, index: int) -> int:
        """The inverse of `index_of`: the entry of its term for the edit at this place."""
        return index - sum(place < index for place in self.removed)


class EntryKey(Record):
    """One of the texts around which an entry fires: the text of its edit, or of a paraphrase."""

    text: str
    radius: float  # the entry fires at this likeness or above (docs/recipes.md)
    nearest_pass_sample: str | None = None  # text of the most similar pass sample
    nearest_likeness: float | None = None  # of that sample: an upper bound


class Entry(Sample):
    """One edit of a scoped version: what it corrects, and where it fires (docs/recipes.md)."""

    keys: tuple[EntryKey, ...] = ()


class ListedEntry(Entry):
    """An entry that is active in a version. If several fire on an input, the newest one wins."""

    id: str  # of its edit: "3.0"
    layer: str
    version: int  # the version that introduced it
    job_id: str | None


class VersionHeader(Record):
    """A version without its deltas: what a list shows. Version 0 is the base."""

    model: Name
    number: int = Field(ge=0)
    parent: int | None
    metrics: Metrics | None
    options: RecipeOptions | None  # of the job that made it; None: the base, or a removal
    layer: str | None
    job_id: str | None
    created_at: datetime

    @property
    def reference(self) -> str:
        """How a client names it: `intents:3`."""
        return f"{self.model}:{self.number}"


class Version(VersionHeader):
    """A hosted model plus the deltas of a chain. Immutable."""

    deltas: tuple[Delta, ...]  # of the whole chain, in the order of application: the parent's first


class ListedOutcome(EditOutcome):
    """An outcome in a list; `position` is where the next page starts after."""

    position: int


class ListedFlip(Flip):
    """A flip in a list; `position` is where the next page starts after."""

    position: int


class Alias(Record):
    """A movable name for a version, such as `intents@production`."""

    model: Name
    name: Name
    version: int
    updated_at: datetime


class AliasChange(Alias):
    """One change of an alias. `id` is where the next page of its history starts after."""

    id: int
