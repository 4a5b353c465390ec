"""What came of an edit: shares with their intervals, outcomes and flips (docs/metrics.md)."""

from __future__ import annotations

from typing import Literal

from salem.records.base import Record
from salem.records.samples import Sample


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
    correct: bool  # `after` is the target, or is not the answer to forget
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
    """The measured figures of a version, on samples that training never saw (docs/metrics.md)."""

    edit_accuracy: Proportion
    adapt_accuracy: Proportion | None
    generalization: Proportion | None  # None: there are no held-out paraphrases; `notes` says why
    drawdown: Proportion | None  # None: there are no held-out pass samples
    locality: Proportion | None  # share of held-out pass samples whose answer did not change at all
    forgetting: Forgetting | None = None  # None: no edit forgets
    protocol: Literal["argmax", "free generation"]
    notes: tuple[str, ...] = ()


class DetailedMetrics(Metrics):
    """The figures with the result of each sample, which storage keeps apart: they may be megabytes."""

    outcomes: tuple[EditOutcome, ...]
    flips: tuple[Flip, ...]

    @property
    def figures(self) -> Metrics:
        """The figures alone."""
        return Metrics(**{name: getattr(self, name) for name in Metrics.model_fields})


class EditorMetrics(Record):
    """What an editor was measured at: edits of its corpus that it was not trained on (docs/editors.md).

    Untrained is the same editor before its first step: gradient descent with the step size that serves best.
    """

    edit_accuracy: Proportion  # of held-out edits that the base answers wrongly
    generalization: Proportion | None  # of their paraphrases; None: there are none
    drawdown: Proportion | None  # on held-out pass samples, with `num_together` edits; None: there are none
    untrained_accuracy: Proportion
    untrained_drawdown: Proportion | None
    notes: tuple[str, ...] = ()
