"""What a client's model reference stands for: `intents`, `intents:3`, `intents@production`."""

from __future__ import annotations

from app.api.services import Services
from salem.errors import InvalidRequest, Pointer
from salem.records import HostedModel, ModelReference, Version


def resolve(machines: Services, text: str) -> tuple[HostedModel, Version]:
    """The hosted model and the version that a reference in the field `model` names.

    Raises:
        InvalidRequest: it is not a reference.
        NotFound: there is no such model, version or alias.
        ModelNotReady: the model is still being registered, or its registration failed.
    """
    try:
        reference = ModelReference.parse(text)
    except ValueError as error:
        raise InvalidRequest(f"/model: {error}", errors=[Pointer("/model", str(error))]) from error
    return machines.registry.get_model(reference.model), machines.registry.resolve(reference)
