"""Step 4: asks the parent for its answers to the edit samples and to the client's neighbors, before anything
changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from salem.errors import InvalidRequest, Pointer
from salem.inference.predict import predict, same_answer
from salem.messages import quote
from salem.models.chat import TurnFinder
from salem.models.network import Network
from salem.records import Edit
from worker.pipeline.context import ContextT, EditJob

_NUM_SHOWN = 3


def predict_edits(context: ContextT) -> ContextT:
    """Set the answers before the edit."""
    context.observer.phase("predicting", 0.1)
    answers = predict(
        context.network,
        context.batch.edit_samples,
        context.parent,
        max_new_tokens=context.recipe.options.max_new_tokens,
    )
    return replace(context, before=tuple(answer.output for answer in answers))


def check_neighbors(job: EditJob) -> EditJob:
    """Keep the parent's answers to the client's neighbors, which measuring needs again.

    Raises:
        InvalidRequest: some of them already get the target of their edit.
    """
    inputs = [neighbor for edit in job.request.edits for neighbor in edit.neighbors]
    if not inputs:
        return job
    most = job.recipe.options.max_new_tokens
    found = predict(job.network, inputs, job.parent, max_new_tokens=most)
    answers = {item.content_hash: answer.output for item, answer in zip(inputs, found, strict=True)}
    _check_not_the_target(job.network, job.request.edits, answers)
    return replace(job, neighbor_answers=answers)


def _check_not_the_target(network: Network, edits: Sequence[Edit], answers: Mapping[str, str]) -> None:
    finder = TurnFinder.of(network.tokenizer)
    errors = [
        Pointer(
            f"/edits/{index}/neighbors/{number}",
            f"{quote(finder.question(neighbor.input))} is already answered with {quote(str(edit.target))}, "
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
