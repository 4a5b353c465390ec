"""The real API over real HTTP inside a test process, with storage that tests fill without a worker.

A model is made ready, and a version published, the way a worker does it: claim the job, report, finish.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import torch
import uvicorn
from tiny_models import save_tiny

from app.main import create_app
from app.service.address import bind
from salem.deltas.files import pack
from salem.deltas.terms import LayerDelta, LowRank
from salem.models import folders, loading
from salem.records import (
    Delta,
    EditResult,
    FolderSource,
    HostedModel,
    Job,
    JobKind,
    ModelState,
    RegistrationResult,
    Task,
    Version,
)
from salem.settings import Settings
from salem.storage.blobs import BlobStore
from salem.storage.publication import AliasMove, Publication
from salem.storage.registry import Registry

START_TIMEOUT_S = 20.0
LEASE_S = 60.0


@contextmanager
def serving(settings: Settings) -> Iterator[httpx.Client]:
    """A client of the app, served by uvicorn in a thread on a free port."""
    server = uvicorn.Server(
        uvicorn.Config(create_app(settings), log_config=None, timeout_graceful_shutdown=1)
    )
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline, "the app did not start"
            time.sleep(0.01)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30.0, trust_env=False) as client:
            yield client
            server.should_exit = True
        thread.join()


def request_of(client: httpx.Client, job: Mapping[str, Any]) -> dict[str, Any]:
    """The request of a job."""
    request: dict[str, Any] = client.get(f"/jobs/{job['id']}/request").raise_for_status().json()
    return request


def edit_result(delta: Delta) -> EditResult:
    """The result of a job that made this delta, without measurements."""
    return EditResult(
        version="",
        failing_before=0,
        layer=delta.layer,
        layer_reason="chosen by the test",
        editor=None,
        kind=delta.kind,
        rank=delta.rank,
        delta_bytes=delta.num_bytes,
        delta_sha256=delta.blob,
        estimated_peak_bytes=0,
        worker_seconds=0,
        phase_seconds={},
    )


@dataclass(frozen=True)
class Stage:
    """The storage of one home, filled by hand."""

    settings: Settings
    registry: Registry
    blobs: BlobStore

    @classmethod
    def of(cls, settings: Settings, registry: Registry) -> Stage:
        return cls(settings, registry, BlobStore.connect(settings.effective_blob_url))

    def host(
        self,
        name: str,
        architecture: str,
        task: Task = Task.SEQUENCE_CLASSIFICATION,
        *,
        prepare: Callable[[Path], None] | None = None,
    ) -> HostedModel:
        """A ready model with tiny random weights. `prepare` can change its folder before registration."""
        folder = save_tiny(self.settings.effective_models_root / name, architecture, task)
        if prepare is not None:
            prepare(folder)
        network = loading.load(folder, task, device="cpu")
        model = HostedModel(
            name=name,
            task=task,
            source=FolderSource(path=name),
            state=ModelState.REGISTERING,
            created_at=datetime.now(UTC),
        )
        job = self.registry.create_model(model, self.blobs.put(b"{}\n"))
        ready = model.model_copy(
            update={
                "state": ModelState.READY,
                "sha256": folders.weights_sha256(folder),
                "descriptions_sha256": folders.descriptions_sha256(folder),
                "labels": network.labels,
                "layers": network.layers,
                "max_input_tokens": network.max_input_tokens,
            }
        )
        found = RegistrationResult(
            model=name,
            sha256=str(ready.sha256),
            reference_accuracy=None,
            num_pass_samples=0,
            num_held_out=0,
        )
        self.registry.finish_registration(
            job.id, self._claim(job.id), ready, [], found.model_dump(mode="json")
        )
        return self.registry.get_model(name)

    def publish(
        self, model: HostedModel, *, seed: int = 0, size: float = 3.0, job: Job | None = None
    ) -> Version:
        """Publish a version with one random low-rank delta at the second-to-last layer, as a job does."""
        draw = torch.Generator().manual_seed(seed)
        layer = model.layers[len(model.layers) // 2]
        term = LowRank(
            a=torch.randn(2, layer.d_in, generator=draw) * size,
            b=torch.randn(layer.d_out, 2, generator=draw) * size,
        )
        assert model.sha256 is not None
        data = pack(LayerDelta(layer.path, (term,)), base_sha256=model.sha256)
        delta = Delta(
            layer=layer.path, blob=self.blobs.put(data), num_bytes=len(data), kind="low_rank", rank=2
        )
        job = job or self.registry.jobs.create(JobKind.EDIT, model.name, {"edits": []})[0]
        asked = self.registry.jobs.get_request(job.id)
        version = Version(
            model=model.name,
            number=0,
            parent=asked.get("parent", 0),
            deltas=(delta,),
            metrics=None,
            options=None,
            layer=layer.path,
            job_id=job.id,
            created_at=datetime.now(UTC),
        )
        alias = asked.get("alias")
        made = Publication(alias=AliasMove(alias, asked.get("alias_was")) if alias else None)
        result = edit_result(delta).model_dump(mode="json")
        return self.registry.finish_edit(job.id, self._claim(job.id), version, result, made)

    def _claim(self, job_id: str) -> str:
        claimed = self.registry.jobs.claim(job_id, LEASE_S)
        assert claimed is not None
        return claimed[1]
