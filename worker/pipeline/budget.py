"""Step 3: estimates the job's peak memory from the model and the samples, and refuses a job that cannot fit.

It runs no model. Must not know how bytes add up; `worker.recipes.memory` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import ceil

from salem.models.batching import LENGTH_BUCKET, supports_logits_to_keep
from salem.models.layers import layer_at
from salem.models.network import Network
from salem.models.tokens import count_tokens, prompt_lengths
from salem.records import EditBatch, EditorOptions, Layer, Sample, TextInput
from worker.dataset.forgetting_targets import MAX_CONTINUATION_TOKENS
from worker.hypernetworks.corpus import Corpus
from worker.pipeline.context import EditJob
from worker.recipes import memory
from worker.recipes.base import Recipe
from worker.recipes.memory import FLOAT_BYTES, Estimate, ModelShape, TokenCounts, Training
from worker.recipes.mend import MendRecipe
from worker.selection.saliency import BATCH
from worker.selection.trials import NUM_PASS, NUM_VALIDATION
from worker.training.loop import CHUNK


def check_budget(job: EditJob) -> EditJob:
    """Set the estimate.

    Raises:
        OverBudget: the job would need more memory than it may use.
    """
    needed = job_estimate(job.network, job.batch, job.recipe)
    job.attempt.check_memory(needed, job.network)
    return replace(job, estimate=needed)


def job_estimate(network: Network, batch: EditBatch, recipe: Recipe) -> Estimate:
    """An upper bound on the peak memory of a job, on the network's device.

    Raises:
        UnsupportedModel: the model does not have the layer that the options name.
    """
    shape, candidates = model_shape(network), _candidates(network, recipe)
    own, kept = token_counts(network, batch.corrections), token_counts(network, batch.pass_samples)
    num_anchors = len(batch.edit_samples) * max(recipe.num_anchors(network, each) for each in candidates)
    copies = 1 + recipe.num_augmentations()
    corrections = TokenCounts(own.tokens * copies, own.answers * copies) + _repeated(kept, num_anchors)
    training = Training(
        corrections,
        kept.longest(recipe.num_pass_samples(len(batch.pass_samples))),
        max(blocks_above(network, layer) for layer in candidates),
        CHUNK if network.device.type == "cuda" else len(corrections.tokens),
    )
    return Estimate(
        weights=shape.weight_bytes,
        samples=memory.sample_bytes(shape, corrections + training.pass_samples),
        step=max(memory.step_bytes(shape, training), _saliency_bytes(shape, own))
        + max(recipe.parameter_bytes(network, batch, layer) for layer in candidates),
        inference=memory.inference_bytes(shape, _longest_measured(network, batch, recipe)),
        preparation=recipe.preparation_bytes(shape, len(corrections.tokens), len(kept.tokens)),
        trials=_trial_bytes(shape, min(recipe.num_trial_edits, len(candidates)), own, kept),
    )


def editor_estimate(network: Network, corpus: Corpus, options: EditorOptions) -> Estimate:
    """An upper bound on the peak memory of a job that trains an editor.

    A step holds one chunk of edits. While the normalizer is fitted, memory holds three copies of every edit's
    layer inputs and output gradients.
    """
    chosen = options.model_dump(include={"layer", "candidates", "editor_rank", "max_new_tokens"})
    recipe = MendRecipe(MendRecipe.Options(**chosen, null_space_rank=0, trial_edits=0))
    batch = corpus.as_batch()
    own = token_counts(network, batch.edit_samples)
    layer = max(_candidates(network, recipe), key=lambda each: each.d_in + each.d_out)
    rows = 3 * FLOAT_BYTES * own.num_padded * (layer.d_in + layer.d_out)
    some = tuple(sorted(batch.edit_samples, key=lambda sample: -len(sample.input))[:CHUNK])
    whole = job_estimate(network, batch.model_copy(update={"edit_samples": some}), recipe)
    return replace(whole, samples=whole.samples + rows)


def model_shape(network: Network) -> ModelShape:
    """The shape of a loaded model. A streamed model holds one block at a time."""
    widths = [size for layer in network.layers for size in (layer.d_in, layer.d_out)]
    streamed = sum(weight.numel() for weight in network.model.parameters() if weight.is_meta)
    num_blocks = len({(layer.stack, layer.block) for layer in network.layers})
    held = network.model.num_parameters() - streamed + ceil(streamed / num_blocks)
    return ModelShape(
        weight_bytes=network.model.dtype.itemsize * held,
        number_bytes=network.model.dtype.itemsize,
        width=min(widths),
        inner_width=max(widths),
        num_blocks=num_blocks,
        num_outputs=len(network.labels) or network.model.get_input_embeddings().num_embeddings,
        generates=network.task.generates,
        all_logits=not supports_logits_to_keep(network),
    )


def token_counts(network: Network, samples: Sequence[Sample]) -> TokenCounts:
    """Tokens of each sample with its answer. A sample that forgets also trains on a new continuation."""
    prompts = count_tokens(network.tokenizer, samples)
    answers = [0] * len(prompts)
    if network.task.generates:
        answers = count_tokens(network.tokenizer, [TextInput(input=sample.answer) for sample in samples])
        ends = [1 + (MAX_CONTINUATION_TOKENS if sample.forgets else 0) for sample in samples]
        answers = [length + end for length, end in zip(answers, ends, strict=True)]
    totals = (
        min(prompt + answer, network.max_input_tokens)
        for prompt, answer in zip(prompts, answers, strict=True)
    )
    return TokenCounts(_padded(totals), tuple(max(1, answer) for answer in answers))


def _padded(lengths: Iterable[int]) -> tuple[int, ...]:
    """Lengths as batches pad them."""
    return tuple(-(-length // LENGTH_BUCKET) * LENGTH_BUCKET for length in lengths)


def blocks_above(network: Network, layer: Layer) -> int:
    """How many blocks run after the layer's block, in its stack and in later stacks."""
    blocks = list(dict.fromkeys((each.stack, each.block) for each in network.layers))
    return len(blocks) - blocks.index((layer.stack, layer.block)) - 1


def _candidates(network: Network, recipe: Recipe) -> Sequence[Layer]:
    named = recipe.options.layer
    return [layer_at(network.layers, named)] if named else recipe.candidate_layers(network)


def _repeated(kept: TokenCounts, number: int) -> TokenCounts:
    """As many samples as there are anchors, each as long as the longest pass sample."""
    longest = kept.longest(1)
    return TokenCounts(longest.tokens * number, longest.answers * number)


def _saliency_bytes(shape: ModelShape, own: TokenCounts) -> int:
    """Memory of a backward pass through all blocks, for a few samples at a time."""
    some = own.longest(BATCH)
    width = shape.num_blocks * memory.backward_width(shape)
    return shape.number_bytes * some.num_padded * width + memory.LOGIT_COPIES * some.logit_bytes(shape)


def _longest_measured(network: Network, batch: EditBatch, recipe: Recipe) -> int:
    held_out = [*(sample for _, sample in batch.held_out_paraphrases), *batch.held_out_pass_samples]
    counted = token_counts(network, [*batch.corrections, *held_out]).tokens
    neighbors = _padded(prompt_lengths(network, [*batch.neighbors, *batch.held_out_neighbors]))
    written = recipe.options.max_new_tokens if network.task.generates else 0
    return min(max(*counted, *neighbors) + written, network.max_input_tokens + LENGTH_BUCKET)


def _trial_bytes(shape: ModelShape, num_layers: int, own: TokenCounts, kept: TokenCounts) -> int:
    """Memory of trial edits: states, answers, and moments at each layer, and one float64 system."""
    if num_layers < 2:
        return 0
    tried = own + own + kept.longest(NUM_PASS + NUM_VALIDATION)  # the edits also with augmentations
    states = shape.number_bytes * tried.num_padded * shape.width * num_layers
    batch = tried.longest(CHUNK)
    capture = shape.number_bytes * batch.num_padded * (num_layers * shape.inner_width + 6 * shape.width)
    squares = shape.inner_width**2 * (4 * FLOAT_BYTES * num_layers + 3 * 8)
    logits = tried.logit_bytes(shape) + memory.LOGIT_COPIES * batch.logit_bytes(shape)
    return states + capture + squares + logits
