"""An edit job: from a stored request to a published version.

The pipeline does the work. Must not know how an attempt begins or fails.
"""

from __future__ import annotations

from worker.attempts.attempt import Attempt
from worker.attempts.pace import PhaseSeconds, expected_after, expected_first
from worker.attempts.reporting import JobReporter
from worker.pipeline.budget import check_budget
from worker.pipeline.context import EditJob
from worker.pipeline.dataset import build_dataset
from worker.pipeline.layer import choose_layer
from worker.pipeline.load import load
from worker.pipeline.make import make_delta
from worker.pipeline.measure import measure
from worker.pipeline.predict import check_neighbors, predict_edits
from worker.pipeline.publish import publish
from worker.pipeline.requirements import check_requirements

STEPS = (
    check_budget,
    predict_edits,
    check_neighbors,
    choose_layer,
    make_delta,
    measure,
    check_requirements,
)


def run(attempt: Attempt, reporter: JobReporter) -> None:
    """Make a version of the edits on top of the parent, and end the job.

    Raises:
        OverBudget: training would need more memory than the job may use.
        InvalidRequest: a neighbor already gets the target of its edit.
        EditFailed: no edit holds.
        RequirementMissed: the version misses a bound of the request's requirements.
    """
    with load(attempt, reporter) as job:
        job = build_dataset(job)
        reporter.expect(_phases(job))
        for step in STEPS:
            job = step(job)
    publish(job, reporter.phase_seconds)


def _phases(job: EditJob) -> PhaseSeconds:
    """How long the job's phases should take."""
    num, most = len(job.batch.corrections), job.recipe.options.saliency_samples
    last = job.attempt.registry.jobs.last_edit(job.model.name, job.recipe.name)
    if last is None:
        return expected_first(num, most, generates=job.network.task.generates)
    return expected_after(last, num, most)
