"""Step 4: asks the parent for its answers to the edits, their paraphrases, and the client's neighbors, before
anything changes. Measuring needs the same answers again, so they are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from salem.errors import InvalidRequest, Pointer
from salem.inference.predict import predict, same_answer
from salem.messages import quote
from salem.models.network import Network
from salem.records import Edit, TextInput
from worker.pipeline.context import ContextT, EditJob

_NUM_SHOWN = 3


def predict_edits(context: ContextT) -> ContextT:
    """Set the answers before the edit."""
    context.observer.phase("predicting", 0.1)
    held_out = (sample for _, sample in context.batch.held_out_paraphrases)
    return _with_answers(context, [*context.batch.corrections, *held_out])


def check_neighbors(job: EditJob) -> EditJob:
    """Keep the parent's answers to the client's neighbors.

    Raises:
        InvalidRequest: some of them already get the target of their edit.
    """
    job = _with_answers(job, [neighbor for edit in job.request.edits for neighbor in edit.neighbors])
    _check_not_the_target(job.network, job.request.edits, job.parent_answers)
    return job


def _with_answers(context: ContextT, inputs: Sequence[TextInput]) -> ContextT:
    """The context with the parent's answers to more inputs."""
    new = {item.content_hash: item for item in inputs if item.content_hash not in context.parent_answers}
    most = context.recipe.options.max_new_tokens
    found = predict(context.network, list(new.values()), context.parent, max_new_tokens=most)
    answers = zip(new, (answer.output for answer in found), strict=True)
    return replace(context, parent_answers={**context.parent_answers, **dict(answers)})


def _check_not_the_target(network: Network, edits: Sequence[Edit], answers: Mapping[str, str]) -> None:
    errors = [
        Pointer(
            f"/edits/{index}/neighbors/{number}",
            f"{network.turns.quote(neighbor.input)} is already answered with {quote(str(edit.target))}, "
            "the target of its edit",
        )
        for index, edit in enumerate(edits)
        for number, neighbor in enumerate(edit.neighbors)
        if edit.target is not None and same_answer(answers[neighbor.content_hash], edit.target)
    ]
    if errors:
        shown = "; ".join(f"{error.pointer}: {error.detail}" for error in errors[:_NUM_SHOWN])
        more = f" (and {len(errors) - _NUM_SHOWN} more)" if len(errors) > _NUM_SHOWN else ""
        raise InvalidRequest(
            f"Some neighbors cannot show whether an edit reaches them: {shown}{more}.",
            remedy="Leave them out, or send them in `paraphrases` if they must get the target.",
            errors=errors,
        )
