"""The route that answers: any version of any hosted model.

The engine blocks, so each model has threads and a bounded queue of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial

from fastapi import APIRouter

from app.api.names import resolve
from app.api.problems import invalid_request
from app.api.schemas import PredictIn, PredictOut
from app.api.services import Machines, Services
from app.validation.drafts import DraftText
from app.validation.texts import check_input, check_lengths
from salem.errors import Pointer
from salem.records import HostedModel

router = APIRouter(tags=["predict"])


@router.post("/predict")
async def predict(request: PredictIn, machines: Machines) -> PredictOut:
    """Answer with a label and scores, or with a text; `model` says exactly which version answered.

    With `explain`, each answer says which edit matched the input, and by what margin.
    """
    name = request.model.partition("@")[0].partition(":")[0]
    return await machines.prediction_queues.run(name, partial(_answer, request, machines))


def _answer(request: PredictIn, machines: Services) -> PredictOut:
    started = time.perf_counter()
    model, version = resolve(machines, request.model)
    if errors := list(_problems(request.inputs, model, machines)):
        raise invalid_request(errors)
    inputs = [draft.checked() for draft in request.inputs]
    predictions = machines.engine.predict(
        model, version, inputs, max_new_tokens=request.max_new_tokens, explain=request.explain
    )
    seconds = round(time.perf_counter() - started, 4)
    return PredictOut(model=version.reference, predictions=tuple(predictions), seconds=seconds)


def _problems(drafts: Sequence[DraftText], model: HostedModel, machines: Services) -> Iterator[Pointer]:
    limit = machines.settings.max_predict_inputs
    if not drafts:
        yield Pointer("/inputs", "there is no input; give at least one text")
    if len(drafts) > limit:
        yield Pointer("/inputs", f"{len(drafts)} inputs, the limit is {limit}; send them in several requests")
        return
    sound = []
    for index, draft in enumerate(drafts):
        blank = list(check_input(f"/inputs/{index}", draft))
        yield from blank
        if not blank:
            sound.append((f"/inputs/{index}/input", draft))
    yield from check_lengths(model, sound, lambda inputs: machines.engine.count_tokens(model, inputs))
