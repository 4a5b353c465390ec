"""Rows of hosted models and their reference samples: each function works inside its caller's transaction.

Knows the tables `models` and `reference_samples`. Must not know the table of versions, nor when to commit.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from salem.errors import Conflict, NotFound
from salem.records import HostedModel, Job, JobKind, ModelState, Name, ReferenceSample, VersionHeader
from salem.storage.publication import Publication
from salem.storage.rows.pages import cut
from salem.storage.schema import columns_of, models, reference_samples, row_values

_MODEL_COLUMNS = columns_of(models, HostedModel)
_NUM_NAMES_SHOWN = 5


def create(connection: Connection, model: HostedModel, reference_blob: str) -> None:
    """Reserve the name for a model that is being registered.

    Raises:
        Conflict: the name is taken. A registration that failed leaves its name free.
    """
    values = row_values(model) | {"state": ModelState.REGISTERING, "reference_blob": reference_blob}
    freed = connection.execute(
        update(models).where(models.c.name == model.name, models.c.state == ModelState.FAILED).values(values)
    )
    if freed.rowcount:
        return
    try:
        with connection.begin_nested():
            connection.execute(insert(models).values(values))
    except IntegrityError as error:
        raise Conflict(f'model "{model.name}" already exists', remedy="choose another name") from error


def get(connection: Connection, name: Name, *, lock: bool = False) -> HostedModel:
    """Read a model. With `lock`, others that want to change the model or its versions wait.

    Raises:
        NotFound: there is no such model; the message names some that exist.
    """
    query = select(*_MODEL_COLUMNS).where(models.c.name == name)
    row = connection.execute(query.with_for_update(key_share=True) if lock else query).mappings().first()
    if row is None:
        raise _no_such_model(connection, name)
    return HostedModel.model_validate(dict(row))


def _no_such_model(connection: Connection, name: Name) -> NotFound:
    query = select(models.c.name).order_by(models.c.name).limit(_NUM_NAMES_SHOWN + 1)
    names = [f'"{known}"' for known in connection.scalars(query)]
    if not names:
        return NotFound(
            f'there is no model "{name}", and no other model yet', remedy="POST /models registers one"
        )
    known = ", ".join(names[:_NUM_NAMES_SHOWN]) + (" and more" if len(names) > _NUM_NAMES_SHOWN else "")
    return NotFound(f'there is no model "{name}"; there are {known}', remedy="GET /models lists all models")


def list_page(connection: Connection, *, limit: int, after: Name | None) -> tuple[list[HostedModel], bool]:
    """Models by name; True if there are more."""
    query = select(*_MODEL_COLUMNS)
    if after is not None:
        query = query.where(models.c.name > after)
    rows = connection.execute(query.order_by(models.c.name).limit(limit + 1)).mappings()
    return cut([HostedModel.model_validate(dict(row)) for row in rows], limit)


def update_metric(connection: Connection, version: VersionHeader, made: Publication) -> str | None:
    """Give the model the scope metric that a job trained, unless it changed while the job ran.

    Returns:
        None, or a note that the model keeps the other metric.
    """
    if made.metric is None:
        return None
    given = models.c.scope_metric.is_not_distinct_from(made.given_metric)
    updated = connection.execute(
        update(models)
        .where(models.c.name == version.model, or_(given, models.c.scope_metric == made.metric))
        .values(scope_metric=made.metric)
    )
    if updated.rowcount:
        return None
    return (
        f'another job updated the scope metric of model "{version.model}" while this one ran: the next job '
        f"starts from the other metric, and {version.reference} keeps its own"
    )


def make_ready(connection: Connection, model: HostedModel, reference: Sequence[ReferenceSample]) -> None:
    """Store what registration found out, and the reference set with the base's answers."""
    values = row_values(model) | {"state": ModelState.READY}
    del values["created_at"]
    connection.execute(update(models).where(models.c.name == model.name).values(values))
    connection.execute(delete(reference_samples).where(reference_samples.c.model == model.name))
    rows = [
        {
            "model": model.name,
            "content_hash": sample.sample.content_hash,
            "position": position,
            "correct": sample.correct,
            "record": sample.model_dump(mode="json"),
        }
        for position, sample in enumerate(reference)
    ]
    if rows:
        connection.execute(insert(reference_samples), rows)


def release_name(connection: Connection, job: Job) -> None:
    """Free the name of a registration that ended without success."""
    if job.kind is not JobKind.REGISTER:
        return
    connection.execute(
        update(models)
        .where(models.c.name == job.model, models.c.state == ModelState.REGISTERING)
        .values(state=ModelState.FAILED)
    )


def list_reference(connection: Connection, name: Name, *, correct: bool | None) -> list[ReferenceSample]:
    """The reference set, or a part of it, in an order that depends on its content only."""
    query = select(reference_samples.c.record).where(reference_samples.c.model == name)
    if correct is not None:
        query = query.where(reference_samples.c.correct == correct)
    ordered = query.order_by(reference_samples.c.content_hash, reference_samples.c.position)
    return [ReferenceSample.model_validate(record) for record in connection.scalars(ordered)]


def blobs(connection: Connection) -> set[str]:
    """The reference sets and scope metrics of models that are hosted or being registered."""
    query = select(models.c.reference_blob, models.c.scope_metric).where(models.c.state != ModelState.FAILED)
    return {blob for row in connection.execute(query) for blob in row if blob}
