"""A registration job: loads a model, describes it, and measures it on the reference set.

Must not know how an attempt begins or fails.
"""

from __future__ import annotations

from salem.models.digests import FileDigests
from salem.models.folders import descriptions_sha256, ensure_unchanged, locate, weights_sha256
from salem.models.loading import load
from salem.models.network import Network
from salem.records import Edit, HostedModel, ModelState, RegisterRequest, RegistrationResult
from worker.attempts.attempt import Attempt
from worker.attempts.reporting import JobReporter
from worker.evaluation.editability import check_editable
from worker.evaluation.reference import ReferenceAnswers, answer_reference


def run(attempt: Attempt, reporter: JobReporter) -> None:
    """Make the model ready, and end the job."""
    request = RegisterRequest.model_validate(attempt.request())
    model = attempt.registry.get_model(request.model)
    reporter.phase("loading", 0.05)
    settings = attempt.settings
    folder = locate(model.source, settings.effective_models_root)
    with ensure_unchanged(folder, model.name):
        network = load(folder, model.task, device=settings.device, streamed=settings.stream_weights)
        check_editable(network)
        sha256 = weights_sha256(folder, FileDigests(settings.file_digests))
        described = descriptions_sha256(folder)
        lines = attempt.blobs.get(request.reference).splitlines()
        samples = [Edit.model_validate_json(line) for line in lines]
        reporter.phase("evaluating", 0.2)
        answered = answer_reference(
            network, samples, lambda share: reporter.phase("evaluating", 0.2 + 0.75 * share)
        )
    reporter.phase("writing", 0.97)
    result = RegistrationResult(
        model=model.name,
        sha256=sha256,
        reference_accuracy=answered.accuracy,
        num_pass_samples=answered.num_pass_samples,
        num_held_out=answered.num_held_out,
    ).model_dump(mode="json")
    ready = _ready(model, network, answered, sha256=sha256, descriptions_sha256=described)
    attempt.end(attempt.registry.finish_registration, ready, answered.reference, result)


def _ready(model: HostedModel, network: Network, answered: ReferenceAnswers, **digests: str) -> HostedModel:
    """The model's record, with what the job found out."""
    return model.model_copy(
        update={
            "state": ModelState.READY,
            "architecture": type(network.model).__name__,
            "num_parameters": network.model.num_parameters(),
            "labels": network.labels,
            "max_input_tokens": network.max_input_tokens,
            "layers": network.layers,
            "reference_accuracy": answered.accuracy,
            "num_pass_samples": answered.num_pass_samples,
            "num_held_out": answered.num_held_out,
            **digests,
        }
    )
