"""A job that trains an editor ahead of time: from a stored corpus to a measured editor.

`worker.hypernetworks.make_editor` does the work. Must not know how an attempt begins or fails.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

from salem.records import EditBatch, Editor, EditorRequest, EditorResult, HostedModel
from salem.storage.editors import editor_id
from worker.attempts.attempt import Attempt
from worker.attempts.reporting import JobReporter
from worker.dataset.split import build_edit_batch
from worker.hypernetworks.corpus import Corpus
from worker.hypernetworks.files import pack_editor
from worker.hypernetworks.make_editor import MeasuredEditor, make_editor, split
from worker.pipeline.budget import editor_estimate


def run(attempt: Attempt, reporter: JobReporter) -> None:
    """Train an editor, and end the job.

    Raises:
        OverBudget: training would need more memory than the job may use.
        EditFailed: the base already gives the target for too many edits of the corpus.
    """
    began = time.monotonic()
    request = EditorRequest.model_validate(attempt.request())
    model = attempt.registry.get_model(request.model)
    reporter.phase("loading", 0.02)
    with attempt.loaded(model) as network:
        reporter.phase("predicting", 0.05)
        corpus = split(network, request.edits, _pools(attempt, request, model), request.options)
        needed = editor_estimate(network, corpus, request.options)
        attempt.check_memory(needed, network)
        cache = attempt.sample_cache(model, network)
        measured = make_editor(network, corpus, request.options, reporter, cache)
    reporter.phase("writing", 0.97)
    editor = _store(attempt, request, model, corpus, measured)
    result = EditorResult(
        **dict(measured.metrics),
        editor=editor.id,
        trained_on=editor.num_trained_on,
        held_out=editor.num_held_out,
        layer=editor.layer,
        layer_reason=measured.reason,
        editor_bytes=editor.num_bytes,
        editor_sha256=editor.blob,
        estimated_peak_bytes=needed.num_bytes,
        worker_seconds=round(time.monotonic() - began, 2),
    )
    attempt.end(attempt.registry.editors.finish, editor, result.model_dump(mode="json"))


def _pools(attempt: Attempt, request: EditorRequest, model: HostedModel) -> EditBatch:
    """Pass samples for training and held-out ones, without texts of the corpus."""
    return build_edit_batch(
        request.edits,
        [] if request.pass_samples is not None else attempt.reference(model),
        request.pass_samples,
        max_pass_samples=request.options.max_pass_samples,
        max_held_out=request.options.max_held_out,
        seed=request.options.seed,
    )


def _store(
    attempt: Attempt, request: EditorRequest, model: HostedModel, corpus: Corpus, measured: MeasuredEditor
) -> Editor:
    """Store the editor's file. Its row is written when the job ends."""
    data = pack_editor(
        measured.trained,
        base_sha256=str(model.sha256),
        seed=request.options.seed,
        corpus_size=len(request.edits),
    )
    return Editor(
        id=editor_id(attempt.job.id),
        model=model.name,
        name=request.name,
        layer=measured.trained.layer.path,
        blob=attempt.keep(data),
        num_bytes=len(data),
        num_trained_on=len(corpus.training),
        num_held_out=len(corpus.held_out),
        metrics=measured.metrics,
        options=request.options,
        job_id=attempt.job.id,
        created_at=datetime.now(UTC),
    )
