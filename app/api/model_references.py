"""Finds the model and version that a request names: `intents`, `intents:3`, or `intents@production`."""

from __future__ import annotations

from app.api.services import Services
from salem.errors import InvalidRequest, Pointer
from salem.messages import quote
from salem.records import HostedModel, ModelReference, Name, Version


def parse(text: str) -> ModelReference:
    """The reference in the field `model`.

    Raises:
        InvalidRequest: the text is not a reference.
    """
    try:
        return ModelReference.parse(text)
    except ValueError as error:
        place = Pointer("/model", f"{quote(text)} is {error}")
        raise InvalidRequest(f"/model: {place.detail}", errors=[place]) from error


def resolve(services: Services, text: str) -> tuple[HostedModel, Version]:
    """The hosted model and the version that the field `model` names.

    Raises:
        InvalidRequest: the text is not a reference.
        NotFound: the model, version, or alias does not exist.
        ModelNotReady: the model is still being registered, or its registration failed.
    """
    reference = parse(text)
    return services.registry.get_model(reference.model), services.registry.resolve(reference)


def check_alias_keeps_edits(reference: ModelReference, alias: Name | None, current: int | None) -> None:
    """Refuse to move an alias from a version with edits to one that is built on the base by oversight.

    Args:
        current: the number of the version that the alias names now.

    Raises:
        InvalidRequest: says how to keep the edits, and how to leave them out on purpose.
    """
    if current and reference.number is None and reference.alias is None:
        name = reference.model
        detail = (
            f'"{name}" is the base without edits, but "{alias}" points to {name}:{current}, which has edits; '
            f"write {name}@{alias} to keep them, or {name}:0 to leave them out"
        )
        raise InvalidRequest(f"/model: {detail}", errors=[Pointer("/model", detail)])


def alias_target(services: Services, model: Name, alias: Name | None) -> int | None:
    """The number of the version that an alias names now; None if there is no such alias.

    Call this before you resolve the parent: otherwise you miss a move of the alias in between.

    Raises:
        NotFound: the model does not exist.
    """
    if alias is None:
        return None
    found = services.registry.find_alias(model, alias)
    return None if found is None else found.version
