"""What a job will take, read off the loaded model and the samples. Nothing is run for it.

Knows on what the recipes train and where they may edit. Does not know how bytes add up (`recipes.memory`),
nor what becomes of a job that takes too much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import ceil

from salem.models.batching import LENGTH_BUCKET, supports_logits_to_keep
from salem.models.layers import layer_at
from salem.models.network import Network
from salem.models.tokens import count_tokens
from salem.models.trunk import sees_answer_tokens
from salem.records import (
    EditBatch,
    EditorOptions,
    Hyperparameters,
    Layer,
    Recipe,
    Sample,
    TextInput,
)
from worker.dataset.forgetting_targets import MAX_CONTINUATION_TOKENS
from worker.hypernetworks.corpus import Corpus
from worker.recipes.memory import FLOAT_BYTES, Estimate, Lengths, ModelShape, estimate, shape_of, trial_bytes
from worker.recipes.scoped.entries import MOST_POSITIONS, num_near, num_stand_ins
from worker.selection.saliency import candidate_layers
from worker.selection.trials import NUM_PASS, NUM_VALIDATION
from worker.training.loop import CHUNK

VALUE_COPIES = 6  # trained, scaled, gradient, two moments, the best so far


def job_estimate(network: Network, batch: EditBatch, hyper: Hyperparameters) -> Estimate:
    """The peak of a job that edits a batch, on the device that the network is on.

    Raises:
        UnsupportedModel: the layer that the options name is not one of the model's.
    """
    num_neighbors = 0 if hyper.recipe is Recipe.SCOPED else hyper.neighbors
    near = batch.edit_samples * num_neighbors  # as long as what they are made of
    batch = batch.model_copy(update={"pass_samples": (*batch.pass_samples, *near)})
    lengths = _lengths(network, batch, hyper)
    layer, num_blocks = _deepest(network, hyper, lengths.answer_share)
    found = estimate(
        replace(_shape(network), num_blocks=num_blocks),
        lengths,
        hyper,
        lowest_block=layer.block,
        num_trained_on=_num_trained_on(batch, hyper),
        cuts_steps=network.device.type == "cuda",
    )
    found = replace(
        found,
        step=found.step + _value_bytes(network, batch, hyper, layer),
        trials=_trial_bytes(network, batch, hyper),
    )
    if hyper.recipe is Recipe.SCOPED and hyper.entry_values == "editor":
        changes = {"recipe": Recipe.MEND, "entry_values": "trained", "neighbors": 0}
        beside = hyper.model_copy(update=changes)  # the batch has the neighbors already
        found = _together(found, job_estimate(network, batch, beside))
    return found


def _together(one: Estimate, other: Estimate) -> Estimate:
    """The peak of two trainings one of which keeps what the other has prepared; the model is there once."""
    sums = {field.name: getattr(one, field.name) + getattr(other, field.name) for field in fields(Estimate)}
    return replace(Estimate(**sums), weights=one.weights, trials=max(one.trials, other.trials))


def _trial_bytes(network: Network, batch: EditBatch, hyper: Hyperparameters) -> int:
    """What trial edits take, where the layer is chosen by them."""
    num_layers = min(hyper.trial_edits, len(_candidates(network, hyper)))
    if num_layers < 2 or hyper.recipe is Recipe.PAPER or hyper.editor is not None:
        return 0
    corrections, own_answers = _tokens(network, batch.corrections)
    pass_samples, pass_answers = _tokens(network, batch.pass_samples)
    lengths = Lengths(
        corrections=corrections,
        pass_samples=sorted(pass_samples)[-(NUM_PASS + NUM_VALIDATION) :],
        held_out=(),
        answer_share=max(own_answers.share, pass_answers.share),
        longest_answer=max(own_answers.longest, pass_answers.longest, 1),
    )
    return trial_bytes(_shape(network), lengths, num_layers=num_layers)


def _value_bytes(network: Network, batch: EditBatch, hyper: Hyperparameters, layer: Layer) -> int:
    """The values of a scoped job's entries with their gradients, moments, and copies."""
    if hyper.recipe is not Recipe.SCOPED:
        return 0
    num_positions = 1
    if sees_answer_tokens(network, layer):
        answers = [TextInput(input=sample.answer) for sample in batch.edit_samples]
        num_positions = min(MOST_POSITIONS, 2 + max(count_tokens(network.tokenizer, answers)))
    return VALUE_COPIES * FLOAT_BYTES * len(batch.edit_samples) * num_positions * layer.d_out


def _num_trained_on(batch: EditBatch, hyper: Hyperparameters) -> int:
    """How many pass samples a job trains on: an editor that was trained ahead has seen its own."""
    if hyper.editor is not None:
        return 0
    near = num_near(hyper) if hyper.recipe is Recipe.SCOPED else len(batch.pass_samples)
    return min(near, len(batch.pass_samples))


def editor_estimate(network: Network, corpus: Corpus, options: EditorOptions) -> Estimate:
    """The peak of a job that trains an editor: a step holds one chunk of edits and one of pass samples.

    Raises:
        UnsupportedModel: the layer that the options name is not one of the model's.
    """
    hyper = Hyperparameters(
        recipe=Recipe.MEND,
        layer=options.layer,
        candidates=options.candidates,
        editor_rank=options.editor_rank,
        null_space_rank=0,
        max_new_tokens=options.max_new_tokens,
    )
    lengths = _lengths(network, corpus.as_batch(), hyper)
    layer, num_blocks = _deepest(network, hyper, lengths.answer_share)
    own = sorted(lengths.corrections)
    in_steps = estimate(
        replace(_shape(network), num_blocks=num_blocks),
        replace(lengths, corrections=own[-CHUNK:]),
        hyper,
        lowest_block=layer.block,
        num_trained_on=len(corpus.pass_samples),
        cuts_steps=network.device.type == "cuda",
    )
    # of every edit of the corpus what enters the layer and the gradient behind it, padded; to fit the
    # normalizer these are there three times
    padded = sum(-(-length // LENGTH_BUCKET) * LENGTH_BUCKET for length in own)
    rows = 3 * FLOAT_BYTES * padded * (layer.d_in + layer.d_out)
    return replace(in_steps, trunks=in_steps.trunks + rows)


def _shape(network: Network) -> ModelShape:
    num_classes = len(network.labels) or network.model.get_input_embeddings().num_embeddings
    shape = shape_of(network.layers, _num_held(network), num_classes, generates=network.task.generates)
    answers_alone = supports_logits_to_keep(network)
    return replace(shape, answers_alone=answers_alone, bytes_per_weight=network.model.dtype.itemsize)


def _num_held(network: Network) -> int:
    """Parameters in memory at a time: of a streamed network those outside of blocks, and one block's."""
    read: int = sum(weight.numel() for weight in network.model.parameters() if weight.is_meta)
    num_blocks = len({(layer.stack, layer.block) for layer in network.layers})
    held: int = network.model.num_parameters()
    return held - read + ceil(read / num_blocks)


def _deepest(network: Network, hyper: Hyperparameters, answer_share: float) -> tuple[Layer, int]:
    """The candidate below which the fewest blocks lie, and how high its stack is.

    Behind an encoder the decoder's blocks run too, over the answers: they count by the share of these.
    """
    stacks = list(dict.fromkeys(layer.stack for layer in network.layers))
    heights = {stack: sum(layer.stack == stack for layer in network.layers) for stack in stacks}

    def height(layer: Layer) -> int:
        behind = sum(heights[stack] for stack in stacks[stacks.index(layer.stack) + 1 :])
        return heights[layer.stack] + ceil(behind * answer_share)

    deepest = max(_candidates(network, hyper), key=lambda layer: height(layer) - layer.block)
    return deepest, height(deepest)


def _candidates(network: Network, hyper: Hyperparameters) -> Sequence[Layer]:
    if hyper.layer:
        return [layer_at(network.layers, hyper.layer)]
    return candidate_layers(network, hyper)


def _lengths(network: Network, batch: EditBatch, hyper: Hyperparameters) -> Lengths:
    """Tokens of the samples; a rewording is taken to be as long as what it rewords."""
    corrections, own_answers = _tokens(network, batch.corrections)
    pass_samples, pass_answers = _tokens(network, batch.pass_samples)
    asked = [*(sample for _, sample in batch.held_out_paraphrases), *batch.held_out_pass_samples]
    written = hyper.max_new_tokens if network.task.generates else 0
    copies = 1 + hyper.augmentations if hyper.recipe is Recipe.SCOPED else 1
    return Lengths(
        corrections=corrections * copies + _stand_ins(network, batch, hyper, pass_samples),
        pass_samples=pass_samples,
        held_out=[min(n + written, network.max_input_tokens) for n in count_tokens(network.tokenizer, asked)],
        answer_share=max(own_answers.share, pass_answers.share),
        longest_answer=max(own_answers.longest, pass_answers.longest, 1),
    )


def _stand_ins(
    network: Network, batch: EditBatch, hyper: Hyperparameters, pass_samples: Sequence[int]
) -> list[int]:
    """Tokens of the pass samples that stand for what a scope may hold: the longest are assumed."""
    if hyper.recipe is not Recipe.SCOPED or not pass_samples:
        return []
    most = max(num_stand_ins(network, layer, hyper) for layer in _candidates(network, hyper))
    number = len(batch.edit_samples) * min(most, len(pass_samples))
    longest = sorted(pass_samples, reverse=True)
    return [longest[place % len(longest)] for place in range(number)]


@dataclass(frozen=True)
class _Written:
    """Answers of a generating model."""

    share: float = 0.0  # of all tokens
    longest: int = 0  # in tokens


def _tokens(network: Network, samples: Sequence[Sample]) -> tuple[list[int], _Written]:
    """Tokens of each sample with the answer that a generating model writes, and those of answers alone.

    A sample that is longer than the model takes has its own error later on.
    """
    most = network.max_input_tokens
    prompts = count_tokens(network.tokenizer, samples)
    if not network.task.generates or not samples:
        return [min(length, most) for length in prompts], _Written()
    written = [TextInput(input=sample.answer) for sample in samples]
    ends = [
        1 + (MAX_CONTINUATION_TOKENS if sample.forgets else 0) for sample in samples
    ]  # and what is said instead
    lengths = count_tokens(network.tokenizer, written)
    answers = [length + end for length, end in zip(lengths, ends, strict=True)]
    totals = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    written_tokens = _Written(sum(answers) / sum(totals), min(max(answers), most))
    return [min(length, most) for length in totals], written_tokens
