"""What a client's names stand for: `intents`, `intents:3`, `intents@production`, and an alias to be moved."""

from __future__ import annotations

from app.api.services import Services
from salem.errors import InvalidRequest, Pointer
from salem.messages import quoted
from salem.records import HostedModel, ModelReference, Name, Version


def parse(text: str) -> ModelReference:
    """A reference in the field `model`.

    Raises:
        InvalidRequest: it is not a reference.
    """
    try:
        return ModelReference.parse(text)
    except ValueError as error:
        place = Pointer("/model", f"{quoted(text)} is {error}")
        raise InvalidRequest(f"/model: {place.detail}", errors=[place]) from error


def resolve(machines: Services, text: str) -> tuple[HostedModel, Version]:
    """The hosted model and the version that a reference in the field `model` names.

    Raises:
        InvalidRequest: it is not a reference.
        NotFound: there is no such model, version or alias.
        ModelNotReady: the model is still being registered, or its registration failed.
    """
    reference = parse(text)
    return machines.registry.get_model(reference.model), machines.registry.resolve(reference)


def check_alias(reference: ModelReference, alias: Name | None, stands_at: int | None) -> None:
    """Refuse to take an alias away from corrections that a bare name, the base, does not have.

    Raises:
        InvalidRequest: says how to keep them, and how to leave them out on purpose.
    """
    if stands_at and reference.number is None and reference.alias is None:
        name = reference.model
        detail = (
            f'"{name}" is the model without corrections, and "{alias}" stands at {name}:{stands_at}, which '
            f"has some; write {name}@{alias} to keep them, {name}:0 to leave them out"
        )
        raise InvalidRequest(f"/model: {detail}", errors=[Pointer("/model", detail)])


def alias_stands_at(machines: Services, model: Name, alias: Name | None) -> int | None:
    """The version that an alias names now; None: there is no such alias, or none is to be moved.

    To be asked before the parent is resolved, so that whoever moves the alias in between is not missed.

    Raises:
        NotFound: there is no such model.
    """
    if alias is None:
        return None
    return next((each.version for each in machines.registry.list_aliases(model) if each.name == alias), None)
