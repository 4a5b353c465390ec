"""The storage, queue, and engine that routes use, opened once per process. Must not know any route."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Annotated

import structlog
from fastapi import Depends, Request

from app.serving.engine import Engine
from app.serving.prediction_queues import PredictionQueues
from app.validation.texts import TextReader
from salem.errors import SalemError, Unavailable
from salem.queue.job_queue import JobQueue
from salem.records import HostedModel, Job
from salem.settings import Settings
from salem.storage.blobs import BlobStore
from salem.storage.registry import Registry


@dataclass(frozen=True)
class Services:
    """The services of one API process."""

    settings: Settings
    registry: Registry
    queue: JobQueue
    blobs: BlobStore
    engine: Engine
    prediction_queues: PredictionQueues

    @classmethod
    def open(cls, settings: Settings) -> Services:
        """Connect to SQL, blobs, and Redis, and migrate the database.

        Raises:
            Misconfigured: the tables belong to a newer release of Salem, or a URL is not valid.
            Unavailable: SQL cannot be reached. Redis may start later; jobs wait in SQL until then.
        """
        registry = Registry.connect(settings.effective_database_url)
        registry.migrate()
        blobs = BlobStore.connect(settings.effective_blob_url)
        engine = Engine(blobs, settings)
        queue = JobQueue.connect(settings.effective_redis_url, settings.queue)
        queues = PredictionQueues(settings.max_queued_predictions)
        return cls(settings, registry, queue, blobs, engine, queues)

    def close(self) -> None:
        self.engine.close()
        self.queue.close()
        self.registry.close()

    def reader(self, model: HostedModel) -> TextReader:
        """What a model's tokenizer knows about texts. The tokenizer is loaded when it is first asked."""
        return TextReader(
            count_tokens=lambda inputs: self.engine.count_tokens(model, inputs),
            quote=lambda prompt: self.engine.turns(model).quote(prompt),
        )

    def remove_unneeded(self, digests: Set[str]) -> None:
        """Remove the blobs that deleted rows named. The reconciler removes any that are left."""
        try:
            known = self.registry.blobs_in_use() | digests
            if self.blobs.claim(self.registry.installation(), known):
                self.blobs.remove_unneeded(digests, self.registry.deletions.needed)
        except SalemError as error:
            structlog.get_logger().warning("blobs of deleted rows are left", reason=error.reason)

    def enqueue(self, job: Job) -> None:
        """Queue a job that is already in SQL. If Redis cannot be reached, the reconciler queues it later."""
        # the only log line with both the request's id and the job's
        structlog.get_logger().info("job created", job_id=job.id, kind=job.kind.value, model=job.model)
        try:
            self.queue.enqueue(job.id, self.settings.job_timeout_s)
        except Unavailable as error:
            structlog.get_logger().warning("job waits for the queue", job_id=job.id, reason=error.reason)


async def services_of(request: Request) -> Services:
    """The services of the app. Asynchronous, so that it needs no thread."""
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(services_of)]
"""Declare a parameter of this type to get the services in a route."""
