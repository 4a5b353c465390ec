"""The parts of a job's estimated peak memory, and the refusal of a job that cannot fit.

A recipe states what it adds as a `Footprint`. Must not know recipes, or how the parts are counted.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from salem.errors import OverBudget
from salem.records import Layer

FLOAT_BYTES = 4
ALLOCATOR = 1.3  # bytes taken from the system per byte requested; measured on encoders: at most 1.19
UPDATE_COPIES = 5  # of a trained update: itself, gradient, two moments, the best so far
_MIB = 2**20


@dataclass(frozen=True)
class Footprint:
    """What a recipe trains on, and what it holds besides states and weights."""

    copies: int = 1  # of each correction: itself and its augmentations
    anchors: int = 0  # pass samples that are trained toward the targets of edits
    pass_samples: int | None = None  # that it trains on; None: all
    caches_prompts: bool = False  # whether it keeps keys and values of the corrections' prompts
    prepared_bytes: int = 0  # before the first step
    trained_bytes: int = 0  # parameters, gradients, and moments


def second_moment_bytes(layer: Layer) -> int:
    """Memory of the second moment of a layer's inputs, and of a linear system or eigenvectors of it."""
    return layer.d_in**2 * (FLOAT_BYTES + 4 * 8)  # the latter four in float64


@dataclass(frozen=True)
class Estimate:
    """Peak bytes by cause. Weights and samples last; the other parts never exist at the same time."""

    weights: int
    samples: int  # states and answers of all samples trained on
    step: int = 0  # activations and logits of one training step, and what is trained
    inference: int = 0  # one batch of measuring, or of the saliency of layers
    preparation: int = 0  # what the recipe needs before the first step
    trials: int = 0  # trial edits at all layers of the shortlist

    @property
    def num_bytes(self) -> int:
        passing = max(self.step, self.inference, self.preparation, self.trials)
        return round(ALLOCATOR * (self.weights + self.samples + passing))

    @property
    def largest(self) -> str:
        """The largest part."""
        return max((field.name for field in fields(self)), key=lambda name: int(getattr(self, name)))


def check_estimate(needed: Estimate, budget_bytes: int | None) -> None:
    """Refuse a job that would not fit. With an unknown budget (None), every job fits.

    Raises:
        OverBudget: the message names need, budget, and the largest part; the remedy lowers that part.
    """
    if budget_bytes is None or needed.num_bytes <= budget_bytes:
        return
    part, remedy = _PARTS[needed.largest]
    raise OverBudget(
        f"The job would use about {_mebibytes(needed.num_bytes)} of memory, "
        f"{_mebibytes(getattr(needed, needed.largest))} of it for {part}; the limit is "
        f"{_mebibytes(budget_bytes)}.",
        remedy=remedy,
    )


_PARTS = {  # by the part of an estimate: its name, and what lowers it
    "weights": ("the model", "Give the worker more memory, or raise SALEM_MEMORY_BUDGET_BYTES."),
    "samples": ("the samples", "Send fewer edits, or lower options.max_pass_samples."),
    "step": ("one training step", "Send fewer edits, shorter samples, or a higher block in options.layer."),
    "inference": ("a batch of predictions", "Shorten the longest samples, including the reference set's."),
    "preparation": ("the recipe's preparation", "Lower options.max_pass_samples or options.editor_rank."),
    "trials": ("trial edits", "Name a layer in options.layer, or lower options.trial_edits."),
}


def _mebibytes(num_bytes: int) -> str:
    return f"{max(1, round(num_bytes / _MIB)):,} MiB"
