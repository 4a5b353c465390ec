"""Step 3: estimates the job's peak memory, an upper bound, and refuses a job that cannot fit.

It adds up what lasts and the largest of what does not, as if each block were attention plus a feed-forward
part. Weights are frozen, so only activations count. It runs no model. Must not know any recipe but MEND,
which trains editors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from typing import NamedTuple

from salem.models.batching import LENGTH_BUCKET, supports_logits_to_keep
from salem.models.layers import layer_at
from salem.models.network import Network
from salem.models.tokens import count_tokens, prompt_lengths
from salem.records import EditBatch, EditorOptions, Sample, TextInput
from worker.activations.trunk_sets import BLOCK_BYTES, PROMPT_BYTES
from worker.dataset.forgetting_targets import MAX_CONTINUATION_TOKENS
from worker.hypernetworks.corpus import Corpus
from worker.pipeline.context import EditJob
from worker.recipes.base import Recipe
from worker.recipes.memory import FLOAT_BYTES, Estimate, second_moment_bytes
from worker.recipes.mend import MendRecipe
from worker.selection.saliency import BATCH
from worker.selection.trials import NUM_PASS, NUM_VALIDATION
from worker.training.loop import CHUNK

INFERENCE_BATCH = 64
LOGIT_COPIES = 5  # in a step: logits, log-probabilities, and what a backward pass keeps of them


def check_budget(job: EditJob) -> EditJob:
    """Set the estimate.

    Raises:
        OverBudget: the job would need more memory than it may use.
    """
    needed = job_estimate(job.network, job.batch, job.recipe)
    encoder = job.artifacts.encoder
    if encoder is not None and job.network.device.type == "cpu":  # the encoder runs on the CPU
        needed = replace(needed, weights=needed.weights + encoder.num_bytes)
    job.attempt.check_memory(needed, job.network)
    return replace(job, estimate=needed)


def job_estimate(network: Network, batch: EditBatch, recipe: Recipe) -> Estimate:
    """An upper bound on the peak memory of a job, on the network's device.

    Raises:
        UnsupportedModel: the model does not have the layer that the options name.
    """
    model, named = Passes(network), recipe.options.layer
    candidates = [layer_at(network.layers, named)] if named else recipe.candidate_layers(network)
    lowest = min(network.layers.index(layer) for layer in candidates)  # a block has one layer
    num_trials = min(recipe.num_trial_edits, len(candidates))
    own, kept = sizes_of(network, batch.corrections), sizes_of(network, batch.pass_samples)
    footprint = recipe.footprint(network, batch)
    corrections = sorted(own * footprint.copies + kept[:1] * footprint.anchors, reverse=True)
    pass_samples = kept[: footprint.pass_samples]
    trained = corrections + pass_samples
    # On a GPU, a step that runs out of memory is split.
    step = (corrections[:CHUNK] if network.device.type == "cuda" else corrections) + pass_samples[:CHUNK]
    measured = [*batch.corrections, *(sample for _, sample in batch.held_out_paraphrases)]
    measured += batch.held_out_pass_samples
    neighbors = prompt_lengths(network, [*batch.neighbors, *batch.held_out_neighbors])
    longest = max(sizes_of(network, measured)[0].tokens, *(_in_bucket(length) for length in neighbors), 0)
    tried = own * 2 + kept[: NUM_PASS + NUM_VALIDATION]  # the edits also with augmentations
    per_trial = model.captured(tried) + max(second_moment_bytes(layer) for layer in candidates)
    return Estimate(
        weights=weight_bytes(network),
        samples=model.captured(trained) + (model.cached(corrections) if footprint.caches_prompts else 0),
        step=model.training(step, len(network.layers) - lowest - 1) + footprint.trained_bytes,
        inference=model.reading(longest + recipe.options.max_new_tokens),
        preparation=footprint.prepared_bytes,
        trials=num_trials * per_trial if num_trials > 1 else 0,
    )


def editor_estimate(network: Network, corpus: Corpus, options: EditorOptions) -> Estimate:
    """An upper bound on the peak memory of a job that trains an editor.

    A step holds one chunk of edits. While the normalizer is fitted, memory holds three copies of every edit's
    layer inputs and output gradients.
    """
    chosen = options.model_dump(include={"layer", "candidates", "editor_rank", "max_new_tokens"})
    recipe = MendRecipe(MendRecipe.Options(**chosen, trial_edits=0))
    batch = corpus.as_batch()
    width = max(layer.d_in + layer.d_out for layer in network.layers)
    rows = 3 * FLOAT_BYTES * _padded(sizes_of(network, batch.edit_samples)) * width
    some = tuple(sorted(batch.edit_samples, key=lambda sample: -len(sample.input))[:CHUNK])
    whole = job_estimate(network, batch.model_copy(update={"edit_samples": some}), recipe)
    return replace(whole, samples=whole.samples + rows)


class Size(NamedTuple):
    """The size of one sample."""

    tokens: int  # with its answer, padded
    logits: int  # tokens that have logits; 1 for a label


def sizes_of(network: Network, samples: Sequence[Sample]) -> list[Size]:
    """The sizes of samples, longest first. A sample that forgets also trains on a new continuation."""
    prompts, answers = count_tokens(network.tokenizer, samples), [0] * len(samples)
    if network.task.generates:
        answers = count_tokens(network.tokenizer, [TextInput(input=sample.answer) for sample in samples])
    sizes = []
    for sample, prompt, answer in zip(samples, prompts, answers, strict=True):
        written = answer + 1 + (MAX_CONTINUATION_TOKENS if sample.forgets else 0)
        padded = _in_bucket(min(prompt + written, network.max_input_tokens))
        sizes.append(Size(padded, written if supports_logits_to_keep(network) else padded))
    return sorted(sizes, reverse=True)


def _in_bucket(length: int) -> int:
    """A length as batches pad it."""
    return ceil(length / LENGTH_BUCKET) * LENGTH_BUCKET


def weight_bytes(network: Network) -> int:
    """Weights that are in memory at the same time. A streamed model holds one block at a time."""
    sizes = {weight: int(weight.nbytes) for weight in network.model.parameters()}
    streamed = sum(size for weight, size in sizes.items() if weight.is_meta)
    return sum(sizes.values()) - streamed + ceil(streamed / len(network.layers))


class Passes:
    """Bytes that passes through a model take."""

    def __init__(self, network: Network) -> None:
        self._network = network
        number_bytes = int(network.model.dtype.itemsize)
        width = max(layer.d_out for layer in network.layers)
        inner_width = max(layer.d_in for layer in network.layers)  # of the feed-forward part
        num_outputs = len(network.labels) or network.model.get_input_embeddings().num_embeddings
        self._logit_bytes = FLOAT_BYTES * int(num_outputs)  # of one token, as are the others
        self._state_bytes = number_bytes * width
        self._cache_bytes = 2 * len(network.layers) * self._state_bytes  # a key and a value in each block
        self._returned_bytes = number_bytes * (6 * width + 3 * inner_width)  # by the modules of a block
        # Kept by a block for a backward pass; an activation such as GPT-2's has steps of its own.
        self._block_bytes = number_bytes * (8 * width + 4 * inner_width)

    def captured(self, samples: Sequence[Size]) -> int:
        """What is kept of samples at one layer: states below it, answers, and results within its block."""
        num_tokens = _padded(samples)
        within = min(BLOCK_BYTES, num_tokens * self._returned_bytes)
        return num_tokens * self._state_bytes + within + _num_logits(samples) * self._logit_bytes

    def cached(self, samples: Sequence[Size]) -> int:
        """Keys and values of the samples' prompts, in all blocks."""
        return min(PROMPT_BYTES, _padded(samples) * self._cache_bytes)

    def training(self, samples: Sequence[Size], num_blocks: int) -> int:
        """One step of training through the top blocks."""
        per_token = num_blocks * self._block_bytes + 2 * self._state_bytes
        return _padded(samples) * per_token + LOGIT_COPIES * _num_logits(samples) * self._logit_bytes

    def reading(self, num_tokens: int) -> int:
        """A batch of the longest samples with a key-value cache, or a backward pass through all blocks."""
        network, num_blocks = self._network, len(self._network.layers)
        cache = self._cache_bytes if network.task.generates else 0
        forward = INFERENCE_BATCH * (self._returned_bytes + cache)
        per_token = max(forward, BATCH * num_blocks * self._block_bytes)
        with_logits = INFERENCE_BATCH * (1 if supports_logits_to_keep(network) else num_tokens)
        return num_tokens * per_token + with_logits * self._logit_bytes


def _num_logits(samples: Sequence[Size]) -> int:
    return sum(sample.logits for sample in samples)


def _padded(samples: Sequence[Size]) -> int:
    """All tokens, when samples of similar length are padded together."""
    tokens = sorted((sample.tokens for sample in samples), reverse=True)
    return sum(tokens[start] * len(tokens[start : start + CHUNK]) for start in range(0, len(tokens), CHUNK))
