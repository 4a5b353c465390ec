"""The route that predicts with any version of a hosted model.

The engine blocks, so each model has its own threads and a bounded queue. Must not know how a model answers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial

from fastapi import APIRouter

from app.api.model_references import resolve
from app.api.problems import invalid_request
from app.api.schemas import PredictIn, PredictOut
from app.api.services import Services, ServicesDep
from app.validation.samples import TextIn
from app.validation.texts import check_input, check_lengths
from salem.errors import Pointer
from salem.records import HostedModel

router = APIRouter(tags=["predict"])


@router.post("/predict")
async def predict(request: PredictIn, services: ServicesDep) -> PredictOut:
    """Answer each input with a label and scores, or with a text. `model` says which version answered.

    With `explain`, each answer names the edit that matched its input, and the margin.
    """
    name = request.model.partition("@")[0].partition(":")[0]
    return await services.prediction_queues.run(name, partial(_answer, request, services))


def _answer(request: PredictIn, services: Services) -> PredictOut:
    started = time.perf_counter()
    model, version = resolve(services, request.model)
    if errors := list(_check_inputs(request.inputs, model, services)):
        raise invalid_request(errors)
    inputs = [item.checked() for item in request.inputs]
    predictions = services.engine.predict(
        model, version, inputs, max_new_tokens=request.max_new_tokens, explain=request.explain
    )
    seconds = round(time.perf_counter() - started, 4)
    return PredictOut(model=version.reference, predictions=tuple(predictions), seconds=seconds)


def _check_inputs(items: Sequence[TextIn], model: HostedModel, services: Services) -> Iterator[Pointer]:
    limit = services.settings.max_predict_inputs
    if not items:
        yield Pointer("/inputs", "the list is empty; send at least one text")
    if len(items) > limit:
        yield Pointer("/inputs", f"{len(items)} inputs, but the limit is {limit}; send several requests")
        return
    readable = []
    for index, item in enumerate(items):
        problems = list(check_input(f"/inputs/{index}", item))
        yield from problems
        if not problems:
            readable.append((f"/inputs/{index}/input", item))
    yield from check_lengths(model, readable, services.reader(model))
