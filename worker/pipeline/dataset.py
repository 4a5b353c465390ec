"""Step 2: builds the edit dataset, with the near neighbors of its edits, and leaves out held-out paraphrases
that an earlier job trained on.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import compress

from salem.models.network import Network
from salem.records import EditBatch, EditRequest, ReferenceSample, Sample, held_out
from worker.dataset.near_samples import NearSamples
from worker.dataset.neighbors import add_neighbors
from worker.dataset.split import build_edit_batch
from worker.dataset.token_limits import prompts_fit
from worker.pipeline.context import EditJob
from worker.pipeline.history import EditHistory
from worker.recipes.catalog import recipe_of


def build_dataset(job: EditJob) -> EditJob:
    """Set the batch. The same request gives the same samples."""
    batch = requested_batch(job.request, job.history, job.network)
    exposure = job.history.exposure(job.chain, job.given_metric)
    return replace(job, batch=job.recipe.without_seen(batch, exposure))


def requested_batch(request: EditRequest, history: EditHistory, network: Network) -> EditBatch:
    """The edit dataset of a request, including what earlier jobs trained on."""
    options, given = recipe_of(request.options).options, request.pass_samples
    batch = build_edit_batch(
        request.edits,
        [] if given is not None else history.reference,
        given,
        max_pass_samples=options.max_pass_samples,
        max_held_out=options.max_held_out,
        seed=options.seed,
    )
    near = history.near_samples(network.turns)
    if given is not None:
        near = NearSamples([_as_reference(sample) for sample in given], network.turns.last_user_turn)
    return _fitting(network, add_neighbors(batch, request.edits, near, generates=network.task.generates))


def _as_reference(sample: Sample) -> ReferenceSample:
    """A pass sample of the request, as if it were a reference sample."""
    is_held_out = held_out(sample.content_hash)
    return ReferenceSample(sample=sample, answer=sample.answer, correct=True, held_out=is_held_out)


def _fitting(network: Network, batch: EditBatch) -> EditBatch:
    """The batch without neighbors that are too long for the model."""
    kept = {
        name: tuple(compress(neighbors, prompts_fit(network, neighbors, spare=1)))
        for name in ("neighbors", "held_out_neighbors")
        if (neighbors := getattr(batch, name))
    }
    return batch.model_copy(update=kept)
