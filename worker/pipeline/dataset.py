"""Step 2: builds the edit dataset, and leaves out held-out paraphrases that an earlier job trained on."""

from __future__ import annotations

from dataclasses import replace

from salem.records import EditBatch, EditRequest
from worker.dataset.split import build_edit_batch
from worker.pipeline.context import EditJob
from worker.pipeline.history import EditHistory
from worker.recipes.catalog import recipe_of


def build_dataset(job: EditJob) -> EditJob:
    """Set the batch. The same request gives the same samples."""
    batch = requested_batch(job.request, job.history)
    exposure = job.history.exposure(job.chain, job.given_metric)
    return replace(job, batch=job.recipe.without_seen(batch, exposure))


def requested_batch(request: EditRequest, history: EditHistory) -> EditBatch:
    """The edit dataset of a request, including what earlier jobs trained on."""
    options = recipe_of(request.options).options
    return build_edit_batch(
        request.edits,
        [] if request.pass_samples is not None else history.reference,
        request.pass_samples,
        max_pass_samples=options.max_pass_samples,
        max_held_out=options.max_held_out,
        seed=options.seed,
    )
