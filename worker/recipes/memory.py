"""Estimates a job's peak memory: an upper bound from the shape of the model and the token counts.

The bound adds up the tensors that exist at the same time. It models a block as attention plus a feed-forward
part, with the widths of its layers. Weights are frozen, so only activations count. Must not know recipes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from salem.errors import OverBudget
from worker.activations.trunk_sets import BLOCK_BYTES
from worker.training.loop import CHUNK

FLOAT_BYTES = 4
ALLOCATOR = 1.3  # bytes taken from the system per byte requested; measured on encoders: at most 1.19
INFERENCE_BATCH = 64
LOGIT_COPIES = 5  # in a step: logits, log-probabilities, and what a backward pass keeps of them
_MIB = 2**20


@dataclass(frozen=True)
class ModelShape:
    """What determines the memory of a hosted model."""

    weight_bytes: int  # that are in memory at the same time
    number_bytes: int  # size of one number of a state
    width: int  # of a state
    inner_width: int  # of the feed-forward part
    num_blocks: int  # of all stacks
    num_outputs: int  # labels, or entries of the vocabulary
    generates: bool
    all_logits: bool = False  # whether every token has logits, not only those of answers


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of samples, each padded and with its answer."""

    tokens: tuple[int, ...]
    answers: tuple[int, ...]  # of these, tokens of the answer and its end; 1 for a label

    def longest(self, number: int) -> TokenCounts:
        """The longest samples, longest first."""
        order = sorted(range(len(self.tokens)), key=lambda row: -self.tokens[row])[:number]
        return TokenCounts(
            tuple(self.tokens[row] for row in order), tuple(self.answers[row] for row in order)
        )

    @property
    def num_padded(self) -> int:
        """All tokens, when samples of similar length are padded together."""
        order = sorted(self.tokens, reverse=True)
        parts = (order[start : start + CHUNK] for start in range(0, len(order), CHUNK))
        return sum(len(part) * part[0] for part in parts)

    def __add__(self, other: TokenCounts) -> TokenCounts:
        return TokenCounts(self.tokens + other.tokens, self.answers + other.answers)

    def logit_bytes(self, shape: ModelShape) -> int:
        """One copy of their logits."""
        rows = self.num_padded if shape.generates and shape.all_logits else sum(self.answers)
        return FLOAT_BYTES * shape.num_outputs * rows


@dataclass(frozen=True)
class Training:
    """What a job trains on."""

    corrections: TokenCounts  # with augmentations and anchor samples
    pass_samples: TokenCounts  # that it trains on
    blocks_above: int  # the most blocks that may lie above the edited layer
    in_one_pass: int  # samples in one step; on a GPU, a step that runs out of memory is split


@dataclass(frozen=True)
class Estimate:
    """Peak bytes by cause. Step, inference, and preparation never exist at the same time.

    Trial edits end before training begins.
    """

    weights: int
    samples: int  # states and answers of all samples trained on
    step: int = 0  # activations and logits of one training step, and what is trained
    inference: int = 0  # one batch of measuring
    preparation: int = 0  # what the recipe needs before the first step
    trials: int = 0  # trial edits at all layers of the shortlist

    @property
    def num_bytes(self) -> int:
        trained = self.samples + max(self.step, self.inference, self.preparation)
        return round(ALLOCATOR * (self.weights + max(trained, self.trials)))

    @property
    def largest(self) -> str:
        """The largest part."""
        return max((field.name for field in fields(self)), key=lambda name: int(getattr(self, name)))


def sample_bytes(shape: ModelShape, samples: TokenCounts) -> int:
    """Memory of samples during training: states below the layer, answers, and a part of the block."""
    states = shape.number_bytes * samples.num_padded
    block = min(BLOCK_BYTES, states * 2 * (shape.width + shape.inner_width))
    return states * shape.width + samples.logit_bytes(shape) + block


def step_bytes(shape: ModelShape, training: Training) -> int:
    """Memory that one training step keeps for its backward pass."""
    in_step = training.corrections.longest(training.in_one_pass) + training.pass_samples.longest(CHUNK)
    per_token = training.blocks_above * backward_width(shape) + 2 * shape.width  # and the edited matrix
    return shape.number_bytes * in_step.num_padded * per_token + LOGIT_COPIES * in_step.logit_bytes(shape)


def backward_width(shape: ModelShape) -> int:
    """Numbers per token that a block keeps for a backward pass."""
    return 8 * shape.width + 2 * shape.inner_width


def inference_bytes(shape: ModelShape, longest: int) -> int:
    """Memory of one batch of predictions of this length, including the key-value cache."""
    cached = 2 * shape.num_blocks * shape.width if shape.generates else 0
    per_token = shape.number_bytes * (6 * shape.width + 2 * shape.inner_width + cached)
    logits = FLOAT_BYTES * shape.num_outputs * (longest if shape.all_logits else 1) if shape.generates else 0
    return INFERENCE_BATCH * (longest * per_token + logits)


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
