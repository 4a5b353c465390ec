"""Metrics of an edit: proportions with their intervals, and results of single samples (docs/metrics.md)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from salem.records.base import Record
from salem.records.samples import Neighbor, Sample


class Proportion(Record):
    """A share of `count` samples, with its 95% interval. The bounds of drawdown may be negative."""

    value: float
    low: float
    high: float
    count: int


class Extent(Record):
    """How likely the model finds an answer to forget, before and after the edit (docs/metrics.md)."""

    rank_before: float  # 1: most likely; for generated answers, the mean over tokens
    rank_after: float
    probability_before: float  # for generated answers, the geometric mean over tokens
    probability_after: float


class MeanExtent(Extent):
    """Means over `count` samples."""

    count: int


class EditOutcome(Sample):
    """The answers to one edit or paraphrase, before and after: labels or generated texts."""

    edit: int  # index of the edit
    kind: Literal["edit", "adapt", "held_out_paraphrase"]
    before: str
    after: str
    correct: bool  # `after` is the target, or differs from the answer to forget
    extent: Extent | None = None  # only for samples that forget


class Flip(Record):
    """A held-out pass sample whose answer changed. `broken`: it was correct before and is wrong now."""

    input: str
    text_pair: str | None = None
    target: str
    before: str
    after: str
    broken: bool


class BrokenNeighbor(Neighbor):
    """A near neighbor of an edit whose answer changed, and not to its target if it has one."""

    before: str
    after: str
    held_out: bool  # only these count in `neighborhood`; the other half calibrates scopes


class Requirements(Record):
    """Bounds on the metrics of a job's version. If it misses one, the job fails and publishes nothing."""

    min_neighborhood: float | None = Field(default=None, ge=0, le=1)
    max_drawdown: float | None = Field(default=None, ge=0, le=1)


class Forgetting(Record):
    """The extent of forgetting by kind of sample. A kind without samples is None."""

    edit: MeanExtent
    adapt: MeanExtent | None
    held_out_paraphrase: MeanExtent | None


class Metrics(Record):
    """The metrics of a version (docs/metrics.md)."""

    edit_accuracy: Proportion
    adapt_accuracy: Proportion | None
    generalization: Proportion | None  # None: there are no held-out paraphrases; `notes` says why
    drawdown: Proportion | None  # None: there are no held-out pass samples
    locality: Proportion | None  # share of held-out pass samples whose answer did not change at all
    neighborhood: Proportion | None = None  # share of held-out neighbors that keep their answer
    forgetting: Forgetting | None = None  # None: no edit forgets
    protocol: Literal["argmax", "free generation"]
    notes: tuple[str, ...] = ()


class DetailedMetrics(Metrics):
    """The metrics and the result of each sample. Storage keeps these apart: they may be megabytes."""

    outcomes: tuple[EditOutcome, ...]
    flips: tuple[Flip, ...]
    broken_neighbors: tuple[BrokenNeighbor, ...] = ()

    @property
    def overall(self) -> Metrics:
        """The metrics without the results of samples."""
        return Metrics(**{name: getattr(self, name) for name in Metrics.model_fields})


class EditorMetrics(Record):
    """The metrics of an editor on held-out edits of its corpus (docs/editors.md).

    `untrained_*` is the same editor before its first step: gradient descent with the best step size.
    """

    edit_accuracy: Proportion  # on held-out edits that the base answers incorrectly
    generalization: Proportion | None  # on their paraphrases; None: there are none
    drawdown: Proportion | None  # on held-out pass samples, with `num_together` edits; None: there are none
    untrained_accuracy: Proportion
    untrained_drawdown: Proportion | None
    notes: tuple[str, ...] = ()
