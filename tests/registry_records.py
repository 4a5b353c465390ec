"""Records for tests of the registry: small models, versions, and jobs, and simultaneous calls."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from salem.errors import (
    SalemError,
)
from salem.records import (
    Delta,
    EditorUse,
    EditResult,
    FolderSource,
    HostedModel,
    Job,
    JobKind,
    Metrics,
    ModelReference,
    ModelState,
    Proportion,
    RecipeOptions,
    ReferenceSample,
    Sample,
    Task,
    Version,
)
from salem.storage.publication import AliasMove, Publication
from salem.storage.registry import Registry

BLOB = "b" * 64
NOW = datetime(2025, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)


def new_model(name: str = "intents") -> HostedModel:
    return HostedModel(
        name=name,
        task=Task.SEQUENCE_CLASSIFICATION,
        source=FolderSource(path=name),
        state=ModelState.REGISTERING,
        created_at=NOW,
    )


def reference_sample(text: str, *, correct: bool = True, held_out: bool = False) -> ReferenceSample:
    return ReferenceSample(
        sample=Sample(input=text, target="refund"), answer="refund", correct=correct, held_out=held_out
    )


def new_version(model: str = "intents", parent: int = 0, blob: str = BLOB) -> Version:
    share = Proportion(value=1.0, low=0.9, high=1.0, count=10)
    return Version(
        model=model,
        number=0,
        parent=parent,
        deltas=(
            Delta(layer="encoder.layer.2.output.dense", blob=blob, num_bytes=10, kind="low_rank", rank=4),
        ),
        metrics=Metrics(
            edit_accuracy=share,
            adapt_accuracy=None,
            generalization=None,
            drawdown=None,
            locality=share,
            protocol="argmax",
        ),
        options=RecipeOptions(recipe="scoped"),
        layer="encoder.layer.2.output.dense",
        job_id=None,
        created_at=NOW,
    )


def edit_result(**changes: Any) -> EditResult:
    found = EditResult(
        version="intents:3",
        edit_accuracy=Proportion(value=0.975, low=0.91, high=0.999, count=40),
        failing_before=1,
        layer="encoder.0",
        layer_reason="the most salient",
        editor=EditorUse(id=None, trained="for this job"),
        kind="low_rank",
        rank=2,
        delta_bytes=10,
        delta_sha256="0123456789abcdef" * 4,
        estimated_peak_bytes=1_000,
        worker_seconds=1.5,
        phase_seconds={"loading": 0.5, "training": 1.0},
    )
    return found.model_copy(update=changes)


def claim(registry: Registry, job: Job, lease_s: float = 30) -> str:
    claimed = registry.jobs.claim(job.id, lease_s)
    assert claimed is not None
    return claimed[1]


def ready_model(
    registry: Registry, name: str = "intents", reference: tuple[ReferenceSample, ...] = ()
) -> HostedModel:
    job = registry.create_model(new_model(name), BLOB)
    found_out = new_model(name).model_copy(
        update={"sha256": "a" * 64, "labels": ("refund", "card"), "num_parameters": 7_000_000_000}
    )
    registry.finish_registration(job.id, claim(registry, job), found_out, reference, {"model": name})
    return registry.get_model(name)


def new_job(registry: Registry, model: str = "intents", **request: Any) -> Job:
    return registry.jobs.create(JobKind.EDIT, model, request)[0]


def publish(
    registry: Registry, version: Version | None = None, alias: str | None = None, alias_was: int | None = None
) -> Version:
    job = new_job(registry)
    made = Publication(alias=AliasMove(alias, alias_was) if alias else None)
    return registry.finish_edit(job.id, claim(registry, job), version or new_version(), {}, made)


def to_production(was: int | None = None) -> Publication:
    return Publication(alias=AliasMove("production", was))


def versions_of(registry: Registry, model: str) -> list[Version]:
    """The versions of a model with their deltas, newest first."""
    headers, _ = registry.list_versions(model)
    return [registry.resolve(ModelReference(model=model, number=each.number)) for each in headers]


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Run calls in threads that start together. An error of Salem counts as a result."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait()
        try:
            return call()
        except SalemError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))
