"""Step 3: estimates the job's peak memory from the loaded model and the samples, and refuses a job that would
not fit.

It runs nothing. Must not know how bytes add up; `worker.recipes.memory` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from salem.models.batching import LENGTH_BUCKET, supports_logits_to_keep
from salem.models.layers import layer_at
from salem.models.network import Network
from salem.models.tokens import count_tokens
from salem.records import EditBatch, EditorOptions, Layer, Sample, TextInput
from worker.dataset.forgetting_targets import MAX_CONTINUATION_TOKENS
from worker.hypernetworks.corpus import Corpus
from worker.pipeline.context import EditJob
from worker.recipes.base import Recipe
from worker.recipes.memory import FLOAT_BYTES, Estimate, Lengths, ModelShape, estimate, shape_of, trial_bytes
from worker.recipes.mend import MendRecipe
from worker.selection.trials import NUM_PASS, NUM_VALIDATION
from worker.training.loop import CHUNK


def check_budget(job: EditJob) -> EditJob:
    """Set the estimate.

    Raises:
        OverBudget: the job would take more memory than it may.
    """
    needed = job_estimate(job.network, job.batch, job.recipe)
    job.attempt.afford(needed, job.network)
    return replace(job, estimate=needed)


def job_estimate(network: Network, batch: EditBatch, recipe: Recipe) -> Estimate:
    """The peak of a job that edits a batch, on the device that the network is on.

    Raises:
        UnsupportedModel: the layer that the options name is not one of the model's.
    """
    lengths = _lengths(network, batch, recipe)
    layer, num_blocks = _deepest(network, _candidates(network, recipe), lengths.answer_share)
    found = estimate(
        replace(_shape(network), num_blocks=num_blocks),
        lengths,
        recipe.preparation_bytes(_shape(network), lengths),
        lowest_block=layer.block,
        num_trained_on=recipe.num_pass_samples(len(batch.pass_samples)),
        cuts_steps=network.device.type == "cuda",
    )
    found = replace(
        found,
        step=found.step + recipe.parameter_bytes(network, batch, layer),
        trials=_trial_bytes(network, batch, recipe),
    )
    return found


def _trial_bytes(network: Network, batch: EditBatch, recipe: Recipe) -> int:
    """What trial edits take, where the layer is chosen by them."""
    num_layers = min(recipe.num_trial_edits, len(_candidates(network, recipe)))
    if num_layers < 2 or recipe.editor is not None:
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


def editor_estimate(network: Network, corpus: Corpus, options: EditorOptions) -> Estimate:
    """The peak of a job that trains an editor: a step holds one chunk of edits and one of pass samples.

    Raises:
        UnsupportedModel: the layer that the options name is not one of the model's.
    """
    chosen = options.model_dump(include={"layer", "candidates", "editor_rank", "max_new_tokens"})
    recipe = MendRecipe(MendRecipe.Options(**chosen, null_space_rank=0))
    lengths = _lengths(network, corpus.as_batch(), recipe)
    layer, num_blocks = _deepest(network, _candidates(network, recipe), lengths.answer_share)
    own = sorted(lengths.corrections)
    in_steps = estimate(
        replace(_shape(network), num_blocks=num_blocks),
        replace(lengths, corrections=own[-CHUNK:]),
        recipe.preparation_bytes(_shape(network), lengths),
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


def _deepest(network: Network, candidates: Sequence[Layer], answer_share: float) -> tuple[Layer, int]:
    """The candidate below which the fewest blocks lie, and how high its stack is.

    Behind an encoder the decoder's blocks run too, over the answers: they count by the share of these.
    """
    stacks = list(dict.fromkeys(layer.stack for layer in network.layers))
    heights = {stack: sum(layer.stack == stack for layer in network.layers) for stack in stacks}

    def height(layer: Layer) -> int:
        behind = sum(heights[stack] for stack in stacks[stacks.index(layer.stack) + 1 :])
        return heights[layer.stack] + ceil(behind * answer_share)

    deepest = max(candidates, key=lambda layer: height(layer) - layer.block)
    return deepest, height(deepest)


def _candidates(network: Network, recipe: Recipe) -> Sequence[Layer]:
    named = recipe.options.layer
    return [layer_at(network.layers, named)] if named else recipe.candidate_layers(network)


def _lengths(network: Network, batch: EditBatch, recipe: Recipe) -> Lengths:
    """Tokens of the samples; a rewording is taken to be as long as what it rewords."""
    corrections, own_answers = _tokens(network, batch.corrections)
    pass_samples, pass_answers = _tokens(network, batch.pass_samples)
    asked = [*(sample for _, sample in batch.held_out_paraphrases), *batch.held_out_pass_samples]
    written = recipe.options.max_new_tokens if network.task.generates else 0
    copies = 1 + recipe.num_augmentations()
    return Lengths(
        corrections=corrections * copies + _anchors(network, batch, recipe, pass_samples),
        pass_samples=pass_samples,
        held_out=[min(n + written, network.max_input_tokens) for n in count_tokens(network.tokenizer, asked)],
        answer_share=max(own_answers.share, pass_answers.share),
        longest_answer=max(own_answers.longest, pass_answers.longest, 1),
    )


def _anchors(network: Network, batch: EditBatch, recipe: Recipe, pass_samples: Sequence[int]) -> list[int]:
    """Tokens of the anchor samples: the longest are assumed."""
    most = max(recipe.num_anchors(network, layer) for layer in _candidates(network, recipe))
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
