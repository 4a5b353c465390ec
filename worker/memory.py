"""Memory: what a job will need at its peak, told before it starts, and whether that is there.

The estimate adds up tensors that are known from the model's shape and the samples' lengths: weights, captured
trunks, what the largest step keeps for its backward. It knows no architecture: a block is taken for attention
and a feed-forward part of the widths that its layers have, with frozen weights, so that only activations are
kept. Does not know tensors, models in memory or how samples are split.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from salem.encoding import LENGTH_BUCKET
from salem.errors import OverBudget
from salem.records import Hyperparameters, Layer, Recipe
from worker.trunk_sets import BLOCK_BYTES

FLOAT_BYTES = 4
_FEATURE_POOLS = 5  # widths of a sample's features, in states
_FEATURE_COPIES = 5  # plain and reworded, standardised, and what the metric's step holds
_INFERENCE_BATCH = 64
_HELD_BY_ALLOCATOR = 1.15  # bytes taken from the system per byte asked for, as measured on encoders
_STEP_SAMPLES = 32  # pass samples of one step, as the training loop cuts them; corrections all take part


@dataclass(frozen=True)
class ModelShape:
    """What of a hosted model settles its need of memory."""

    num_parameters: int
    num_blocks: int  # of the stack that is edited
    width: int  # of a state
    inner_width: int  # of the feed-forward part
    num_classes: int  # labels, or entries of the vocabulary
    generates: bool
    bytes_per_weight: int = FLOAT_BYTES


@dataclass(frozen=True)
class Lengths:
    """Tokens of each sample, answers of generating models included."""

    corrections: Sequence[int]  # with their rewordings, where the recipe trains on them
    pass_samples: Sequence[int]
    held_out: Sequence[int]


@dataclass(frozen=True)
class Estimate:
    """Bytes at the peak, by what takes them. Of step, inference and preparation, one is there at a time."""

    weights: int
    trunks: int  # what enters the edited block, of all samples trained on
    answers: int  # log-probabilities of pass samples before the edit
    block: int  # what the edited block's modules returned
    step: int  # kept by one forward for its backward, with the logits
    inference: int  # one batch of measuring
    preparation: int  # features and metric, or second moment, null space and editor

    @property
    def num_bytes(self) -> int:
        lasting = self.weights + self.trunks + self.answers + self.block
        return round(_HELD_BY_ALLOCATOR * (lasting + max(self.step, self.inference, self.preparation)))

    @property
    def largest(self) -> str:
        """The part that takes most."""
        return max((field.name for field in fields(self)), key=lambda name: int(getattr(self, name)))


def shape_of(
    layers: Sequence[Layer], num_parameters: int, num_classes: int, *, generates: bool
) -> ModelShape:
    """The shape of a model from what its registration keeps; of two stacks, that of the last counts."""
    stack = [layer for layer in layers if layer.stack == layers[-1].stack]
    last = stack[-1]
    blocks = len({layer.block for layer in stack})
    return ModelShape(
        num_parameters, blocks, min(last.d_in, last.d_out), max(last.d_in, last.d_out), num_classes, generates
    )


def estimate(
    shape: ModelShape, lengths: Lengths, hyper: Hyperparameters, *, lowest_block: int, num_trained_on: int
) -> Estimate:
    """The peak of an edit job.

    Args:
        shape: of the hosted model.
        lengths: of the job's samples.
        hyper: the job's options.
        lowest_block: the lowest block that may be edited.
        num_trained_on: how many of the pass samples the recipe trains on; the longest are assumed.
    """
    trained_on = [*_padded(lengths.corrections), *sorted(_padded(lengths.pass_samples))[-num_trained_on:]]
    tokens = sum(trained_on)
    longest = max(_padded([*lengths.corrections, *lengths.pass_samples, *lengths.held_out]), default=0)
    per_token = 2 * shape.width + 2 * shape.inner_width  # attention, states and activations inside a block
    step_tokens = longest * (len(lengths.corrections) + min(_STEP_SAMPLES, num_trained_on))
    kept = step_tokens * (shape.num_blocks - lowest_block) * (8 * shape.width + 2 * shape.inner_width)
    return Estimate(
        weights=shape.num_parameters * shape.bytes_per_weight,
        trunks=FLOAT_BYTES * tokens * shape.width,
        answers=FLOAT_BYTES * shape.num_classes * (tokens // 2 if shape.generates else len(trained_on)),
        block=min(BLOCK_BYTES, FLOAT_BYTES * tokens * per_token),
        step=FLOAT_BYTES * kept + _logit_bytes(shape, step_tokens, copies=4),
        inference=FLOAT_BYTES * _INFERENCE_BATCH * longest * (6 * shape.width + 2 * shape.inner_width)
        + _logit_bytes(shape, _INFERENCE_BATCH * longest, copies=1),
        preparation=_preparation_bytes(shape, len(lengths.pass_samples), hyper),
    )


def _padded(lengths: Sequence[int]) -> list[int]:
    return [-(-length // LENGTH_BUCKET) * LENGTH_BUCKET for length in lengths]


def _logit_bytes(shape: ModelShape, tokens: int, copies: int) -> int:
    """A generating model gives logits at every token of a batch."""
    return FLOAT_BYTES * tokens * shape.num_classes * copies if shape.generates else 0


def _preparation_bytes(shape: ModelShape, num_pass: int, hyper: Hyperparameters) -> int:
    if hyper.recipe is Recipe.SCOPED:
        return FLOAT_BYTES * num_pass * _FEATURE_POOLS * shape.width * _FEATURE_COPIES
    moment = shape.inner_width**2 * (FLOAT_BYTES + 4 * 8)  # its eigenvectors are found in float64
    editor = 4 * FLOAT_BYTES * 4 * hyper.editor_rank * (shape.width + shape.inner_width)
    return moment + editor


def check_budget(needed: Estimate, budget_bytes: int) -> None:
    """Refuse a job that would not fit.

    Raises:
        OverBudget: its message gives need and budget, its remedy the option that lowers the largest part.
    """
    if needed.num_bytes <= budget_bytes:
        return
    raise OverBudget(
        f"The job would take about {_megabytes(needed.num_bytes)} of memory, of which {needed.largest} take "
        f"{_megabytes(getattr(needed, needed.largest))}; {_megabytes(budget_bytes)} are there for it.",
        remedy=_REMEDIES[needed.largest],
    )


_FEWER = "Lower options.max_pass_samples, or give the worker more memory."
_REMEDIES = {
    "weights": "The model itself is too large for the worker: use a larger host or raise the memory budget.",
    "trunks": _FEWER,
    "answers": _FEWER,
    "block": _FEWER,
    "step": "Shorten the longest samples, or name a layer of a higher block in options.layer.",
    "inference": "Shorten the longest samples, those of the reference set included.",
    "preparation": "Lower options.max_pass_samples (scoped) or options.editor_rank (mend, paper).",
}


def _megabytes(num_bytes: int) -> str:
    return f"{max(1, round(num_bytes / 2**20)):,} MiB"


def available_bytes() -> int | None:
    """Memory that this process can still get: the host's, or what its cgroup leaves; None where unknown."""
    found = [
        bytes_left for bytes_left in (_host_bytes(), _cgroup_bytes(Path("/sys/fs/cgroup"))) if bytes_left
    ]
    return min(found, default=None)


def _host_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return int(kilobytes) * 1024 if kilobytes else None


def _cgroup_bytes(folder: Path) -> int | None:
    """What a version 2 group's limit leaves; None without a limit."""
    try:
        limit, current = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return None
    return max(0, int(limit) - int(current)) if limit.isdigit() else None


def resident_bytes() -> int:
    """Memory that this process holds now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
