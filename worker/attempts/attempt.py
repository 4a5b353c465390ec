"""One attempt of one job: reads models, deltas, metrics, editors, and reference sets, and stores results.

Must not know what any kind of job does, or when an attempt begins or ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from salem.deltas.files import Readers, unpack
from salem.deltas.terms import LayerDelta
from salem.models.devices import resolve_device
from salem.models.digests import FileDigests
from salem.models.folders import check_registered, descriptions_sha256, ensure_unchanged, registered_folder
from salem.models.layers import layer_at
from salem.models.loading import load
from salem.models.network import Network
from salem.records import Delta, HostedModel, Job, ModelReference, ReferenceSample, Sha256, Version
from salem.scope.encoder_files import encoder_named, load_encoder
from salem.scope.metric import Metric
from salem.scope.metric_files import unpack_metric
from salem.settings import Settings
from salem.storage.blobs import BlobStore
from salem.storage.registry import Registry
from worker.activations.cache import SampleCache
from worker.attempts.machine_memory import reachable_bytes
from worker.attempts.retries import with_retries
from worker.hypernetworks.files import TrainedEditor, unpack_editor
from worker.recipes.base import Artifacts
from worker.recipes.memory import Estimate, check_estimate

P = ParamSpec("P")


@dataclass(frozen=True)
class Attempt:
    """A claimed job. Its results are written together with the end of the job, under its lease."""

    settings: Settings
    registry: Registry
    blobs: BlobStore
    job: Job
    lease: str
    _metrics: dict[Sha256, Metric] = field(default_factory=dict, repr=False, compare=False)

    @contextmanager
    def loaded(self, model: HostedModel) -> Iterator[Network]:
        """The hosted model, loaded or streamed as the settings say. Store nothing before this block ends.

        Raises:
            ModelNotReady: its files are missing, differ from the registered ones, or changed meanwhile.
            UnsupportedModel: its folder cannot be loaded.
        """
        folder = self._folder(model)
        with ensure_unchanged(folder, model.name):
            settings = self.settings
            check_registered(folder, model, FileDigests(settings.file_digests))
            network = load(folder, model.task, device=settings.device, streamed=settings.stream_weights)
            # Another release may find other layers, but stored deltas name the registered ones.
            yield replace(network, layers=model.layers)

    def request(self) -> dict[str, Any]:
        """The job's request: a `JobRequest` as JSON."""
        return self.registry.jobs.get_request(self.job.id)

    def check_memory(self, needed: Estimate, network: Network) -> None:
        """Refuse work that needs more memory than the job may use.

        Raises:
            OverBudget: the message names the need and its largest part.
        """
        check_estimate(needed, self.settings.memory_budget_bytes or reachable_bytes(network.device))

    def sample_cache(self, model: HostedModel, network: Network) -> SampleCache | None:
        """The cache of the base's activations; None if the settings turn it off."""
        settings = self.settings
        if not settings.trunk_cache_bytes:
            return None
        described = descriptions_sha256(self._folder(model))
        arithmetic = (model.sha256, described, network.model.dtype, network.device)
        name = " ".join(map(str, arithmetic))
        return SampleCache(settings.trunk_cache_folder, settings.trunk_cache_bytes, name)

    def keep(self, data: bytes) -> Sha256:
        """Store data as a blob. It is invisible until the job ends."""
        return with_retries(self.blobs.put, data)

    def end(
        self, finish: Callable[Concatenate[str, str, P], object], *args: P.args, **more: P.kwargs
    ) -> None:
        """Mark the job as succeeded, in one transaction with what `finish` records.

        Raises:
            LeaseLost: another attempt has the job, or it was canceled. Nothing was recorded.
        """
        with_retries(finish, self.job.id, self.lease, *args, **more)

    def _folder(self, model: HostedModel) -> Path:
        return registered_folder(model, self.settings.effective_models_root)

    def version(self, model: HostedModel, number: int) -> Version:
        return self.registry.resolve(ModelReference(model=model.name, number=number))

    def stored(self, delta: Delta, model: HostedModel) -> LayerDelta:
        """A delta as stored, with its metric if it is scoped."""
        data = self.blobs.get(delta.blob)
        return unpack(data, base_sha256=str(model.sha256), layers=model.layers, readers=self._readers)

    def unpacked(self, delta: Delta, model: HostedModel, network: Network) -> LayerDelta:
        """A delta on the network's device and in its type."""
        return self.stored(delta, model).to(network.device, network.model.dtype)

    def metric(self, name: Sha256 | None, network: Network) -> Metric | None:
        """The scope metric in this blob, on the network's device; None if there is no metric yet."""
        return None if name is None else self._metric(name).to(network.device)

    def artifacts(
        self, model: HostedModel, network: Network, metric: Sha256 | None, editor: str | None
    ) -> Artifacts:
        """What a job gets from earlier jobs: a scope metric, an editor, and cached activations.

        Raises:
            NotFound: there is no such editor.
            DeltaRejected: its file is damaged, or belongs to other base weights or another layer.
        """
        trained = None if editor is None else self._editor(editor, model).to(network.device)
        encoder = load_encoder(self.settings.scope_encoder)
        return Artifacts(self.metric(metric, network), encoder, trained, self.sample_cache(model, network))

    def _editor(self, name: str, model: HostedModel) -> TrainedEditor:
        kept = self.registry.editors.get(name)
        data = self.blobs.get(kept.blob)
        return unpack_editor(data, base_sha256=str(model.sha256), layer=layer_at(model.layers, kept.layer))

    @property
    def _readers(self) -> Readers:
        return Readers(self._metric, partial(encoder_named, source=self.settings.scope_encoder))

    def _metric(self, name: Sha256) -> Metric:
        """A scope metric on the worker's device; all deltas of a job share it."""
        if name not in self._metrics:
            self._metrics[name] = unpack_metric(self.blobs.get(name)).to(resolve_device(self.settings.device))
        return self._metrics[name]

    def reference(self, model: HostedModel) -> list[ReferenceSample]:
        """The reference samples that the base answers correctly."""
        return self.registry.reference_samples(model.name, correct=True)
