"""Memory: what a job will need at its peak, told before it starts, and whether that is there.

The estimate adds up tensors that are known from the model's shape and the samples' lengths: weights, captured
trunks, what the largest step keeps for its backward. It knows no architecture: a block is taken for attention
and a feed-forward part of the widths that its layers have, with frozen weights, so that only activations are
kept. Does not know models in memory or how samples are split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from salem.errors import OverBudget
from salem.models.batching import LENGTH_BUCKET
from salem.records import Layer
from worker.activations.trunk_sets import BLOCK_BYTES
from worker.selection import saliency

FLOAT_BYTES = 4
_INFERENCE_BATCH = 64
_HELD_BY_ALLOCATOR = 1.15  # bytes taken from the system per byte asked for, as measured on encoders
_STEP_SAMPLES = 32  # pass samples of one step, as the training loop cuts them; corrections all take part


@dataclass(frozen=True)
class ModelShape:
    """What of a hosted model settles its need of memory."""

    num_parameters: int
    num_blocks: int  # of the stack that is edited, and what of a stack behind it runs for a token
    width: int  # of a state
    inner_width: int  # of the feed-forward part
    num_classes: int  # labels, or entries of the vocabulary
    generates: bool
    answers_alone: bool = True  # have logits; else every token of a sample
    bytes_per_weight: int = FLOAT_BYTES  # and per number of a state


@dataclass(frozen=True)
class Lengths:
    """Tokens of each sample, answers of generating models included."""

    corrections: Sequence[int]  # with their rewordings, where the recipe trains on them
    pass_samples: Sequence[int]
    held_out: Sequence[int]
    answer_share: float = 0.5  # of the tokens of a generating model, those of answers
    longest_answer: int = 16  # in tokens


@dataclass(frozen=True)
class Estimate:
    """Bytes at the peak, by what takes them. Of step, inference and preparation, one is there at a time.

    Trials are over, and nothing of them is left, before any of the other parts is there, but the weights.
    """

    weights: int
    trunks: int  # what enters the edited block, of all samples trained on
    answers: int  # log-probabilities before the edit, of corrections too: those that forget keep them
    block: int  # what the edited block's modules returned
    step: int  # kept by the largest pass of a step for its backward, with the logits
    inference: int  # one batch of measuring
    preparation: int  # features and metric, or second moment, null space and editor
    trials: int = 0  # trunks and answers at every layer that is tried, moments and factors

    @property
    def num_bytes(self) -> int:
        lasting = self.trunks + self.answers + self.block
        trained = lasting + max(self.step, self.inference, self.preparation)
        return round(_HELD_BY_ALLOCATOR * (self.weights + max(trained, self.trials)))

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
    shape: ModelShape,
    lengths: Lengths,
    preparation: int,
    *,
    lowest_block: int,
    num_trained_on: int,
    cuts_steps: bool = False,
) -> Estimate:
    """The peak of an edit job.

    Args:
        shape: of the hosted model.
        lengths: of the job's samples.
        preparation: bytes that the recipe takes before its first step.
        lowest_block: the lowest block that may be edited.
        num_trained_on: how many of the pass samples the recipe trains on; the longest are assumed.
        cuts_steps: whether a step that runs out of memory goes on in smaller passes, as on a GPU; on a CPU
            the system may end the process first.
    """
    corrections, kept = _chunks(lengths.corrections), _chunks(lengths.pass_samples, num_trained_on)
    passes = [*corrections, *kept[:1]]  # of a step: all corrections and one chunk of pass samples
    largest = max(passes, default=0)
    in_step = largest if cuts_steps else sum(passes)
    tokens = sum(corrections) + sum(kept)
    longest = max(_padded([*lengths.corrections, *lengths.pass_samples, *lengths.held_out]), default=0)
    measured = _INFERENCE_BATCH * longest
    per_token = 2 * shape.width + 2 * shape.inner_width  # attention, states and activations inside a block
    per_block = 8 * shape.width + 2 * shape.inner_width  # the same, kept for a backward
    above = max(shape.num_blocks - lowest_block - 1, 0) * per_block + 2 * shape.width  # the edited matrix
    own = _padded(lengths.corrections)
    selecting = min(saliency.BATCH, len(own)) * max(own, default=0)  # tokens of a batch for saliency
    size = shape.bytes_per_weight
    return Estimate(
        weights=size * shape.num_parameters,
        trunks=size * tokens * shape.width,
        answers=_answer_bytes(shape, lengths, tokens, num_trained_on),
        block=min(BLOCK_BYTES, size * tokens * per_token),
        step=size * max(in_step * above, selecting * shape.num_blocks * per_block)
        + _logit_bytes(shape, lengths, (_STEP_SAMPLES, largest), copies=2, kept_for=in_step),
        inference=size * measured * (6 * shape.width + 2 * shape.inner_width + _cached_width(shape))
        + _logit_bytes(shape, lengths, (_INFERENCE_BATCH, measured), copies=1),
        preparation=preparation,
    )


def _cached_width(shape: ModelShape) -> int:
    """Numbers of a token that stay while an answer is written: keys and values of every block."""
    return 2 * shape.num_blocks * shape.width if shape.generates else 0


def trial_bytes(shape: ModelShape, lengths: Lengths, *, num_layers: int) -> int:
    """What trial edits at so many layers take together; `lengths` are those of the samples tried on."""
    # Of edits also rewordings; of paraphrases none, and the difference is small beside the pass samples.
    parts = [*_chunks(lengths.corrections) * 2, *_chunks(lengths.pass_samples)]
    tokens = sum(parts)
    num_samples = 2 * len(lengths.corrections) + len(lengths.pass_samples)
    written = min(tokens * lengths.answer_share, num_samples * lengths.longest_answer)
    num_answers = written if shape.generates else num_samples
    batch = max(parts, default=0)
    capture = shape.bytes_per_weight * batch * (num_layers * shape.inner_width + 6 * shape.width)
    # a moment for each part of the samples, and in float64 what one layer's is factored into
    squares = shape.inner_width**2 * (4 * FLOAT_BYTES * num_layers + 3 * 8)
    return (
        shape.bytes_per_weight * num_layers * tokens * shape.width
        + round(FLOAT_BYTES * shape.num_classes * num_answers)
        + capture
        + _logit_bytes(shape, lengths, (_STEP_SAMPLES, batch), copies=2)
        + squares
    )


def _chunks(lengths: Sequence[int], most: int | None = None) -> list[int]:
    """Tokens of each chunk of the training loop, of all samples or of the longest so many; longest first."""
    order = sorted(_padded(lengths), reverse=True)[:most]
    parts = (order[start : start + _STEP_SAMPLES] for start in range(0, len(order), _STEP_SAMPLES))
    return [len(part) * part[0] for part in parts]


def _padded(lengths: Sequence[int]) -> list[int]:
    return [-(-length // LENGTH_BUCKET) * LENGTH_BUCKET for length in lengths]


def _answer_bytes(shape: ModelShape, lengths: Lengths, tokens: int, num_trained_on: int) -> int:
    single = len(lengths.corrections) + num_trained_on
    num_answers = tokens * lengths.answer_share if shape.generates else single
    return round(FLOAT_BYTES * shape.num_classes * num_answers)


def _logit_bytes(
    shape: ModelShape, lengths: Lengths, batch: tuple[int, int], copies: int, kept_for: int = 0
) -> int:
    """Logits of a batch of so many samples and tokens, of each copy, and those that a step keeps."""
    if not shape.generates:
        return 0
    num_samples, tokens = batch
    at_once = min(tokens, num_samples * lengths.longest_answer) if shape.answers_alone else tokens
    num_rows = copies * at_once + 3 * kept_for * lengths.answer_share
    return round(FLOAT_BYTES * num_rows * shape.num_classes)


def check_estimate(needed: Estimate, budget_bytes: int | None) -> None:
    """Refuse a job that would not fit; where the budget is unknown (None), none is refused.

    Raises:
        OverBudget: its message gives need and budget, its remedy what lowers the largest part.
    """
    if budget_bytes is None or needed.num_bytes <= budget_bytes:
        return
    words, remedy = _PARTS[needed.largest]
    raise OverBudget(
        f"The job would take about {_megabytes(needed.num_bytes)} of memory, "
        f"{_megabytes(getattr(needed, needed.largest))} of it for {words}; "
        f"it may take {_megabytes(budget_bytes)}.",
        remedy=remedy,
    )


_FEWER = "Send fewer edits, lower options.max_pass_samples, or give the worker more memory."
# Of each part of an estimate: what it is for, and what lowers it.
_PARTS = {
    "weights": ("the model itself", "Give the worker more memory, or raise its SALEM_MEMORY_BUDGET_BYTES."),
    "trunks": ("the samples' states below the edited layer", _FEWER),
    "answers": ("the answers before the edit", _FEWER),
    "block": ("the samples' states in the edited block", _FEWER),
    "step": (
        "one training step",
        "Send fewer edits, shorten the longest samples, or name a layer of a higher block in options.layer.",
    ),
    "inference": ("a batch of answers", "Shorten the longest samples, those of the reference set included."),
    "trials": (
        "a trial edit at each of the most salient layers",
        "Name a layer in options.layer, lower options.trial_edits, or shorten the longest samples.",
    ),
    "preparation": (
        "what the recipe prepares",
        "Lower options.max_pass_samples (scoped) or options.editor_rank (mend, paper).",
    ),
}


def _megabytes(num_bytes: int) -> str:
    return f"{max(1, round(num_bytes / 2**20)):,} MiB"
