"""Step 1: reads the request, the parent version, and the artifacts of earlier jobs, and loads the model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from salem.records import EditRequest
from worker.attempts.attempt import Attempt
from worker.evaluation.reference import MAX_ANSWER_TOKENS
from worker.pipeline.context import EditJob
from worker.pipeline.history import EditHistory
from worker.recipes.catalog import recipe_of
from worker.training.observer import Observer


@contextmanager
def load(attempt: Attempt, observer: Observer) -> Iterator[EditJob]:
    """An edit job with its model in memory. At the end, checks that the model's files did not change.

    Raises:
        ModelNotReady: the model's files are missing or have changed.
        NotFound: there is no such editor.
    """
    began = time.monotonic()
    request = EditRequest.model_validate(attempt.request())
    model = attempt.registry.get_model(request.model)
    version = attempt.version(model, request.parent)
    history = EditHistory.of(attempt, model)
    recipe = recipe_of(request.options)
    observer.phase("loading", 0.02)
    with attempt.loaded(model) as network:
        job = EditJob(
            attempt=attempt,
            observer=observer,
            request=request,
            recipe=recipe,
            model=model,
            version=version,
            history=history,
            below=version.deltas,
            chain=history.chain(version),
            given_metric=model.scope_metric,
            began=began,
            network=network,
            parent=tuple(attempt.unpacked(delta, model, network) for delta in version.deltas),
            artifacts=attempt.artifacts(model, network, model.scope_metric, recipe.editor),
            earlier_edits=history.active_edits(version),
        )
        yield replace(job, base_answers=_registered_answers(job))


def _registered_answers(job: EditJob) -> dict[str, str]:
    """The base's answers at registration, if the job generates as many tokens as registration did."""
    if job.request.pass_samples is not None or job.recipe.options.max_new_tokens != MAX_ANSWER_TOKENS:
        return {}
    return {item.sample.content_hash: item.answer for item in job.history.reference}
