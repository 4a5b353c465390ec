"""Serving: keeps hosted models in memory and answers as any of their versions.

The only module of the API that reaches torch, and only through the kernel. Does not know HTTP, SQL or jobs.
A version is its model with deltas hooked on while it answers, so one copy of the base weights serves them all
and is never written. Methods block: call them from a thread.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from transformers import PreTrainedTokenizerBase

from app.serving.loaded_models import Residents
from salem.deltas.chain import EntryMatch
from salem.deltas.files import unpack
from salem.deltas.terms import LayerDelta
from salem.errors import BlobCorrupted, BlobMissing, ModelNotReady
from salem.inference import predict
from salem.models import folders, loading, tokens
from salem.models.devices import resolve_device
from salem.models.network import Network
from salem.records import (
    Delta,
    EditId,
    ExplainedPrediction,
    FolderSource,
    HostedModel,
    Match,
    ModelState,
    Prediction,
    Source,
    TextInput,
    Version,
)
from salem.scope.metric import Metric
from salem.scope.metric_files import unpack_metric
from salem.storage.blobs import BlobStore

DELTA_CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Counter:
    """A hosted model's tokenizer. The lock is held while it counts: two threads may not use it at once."""

    tokenizer: PreTrainedTokenizerBase
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, inputs: Sequence[TextInput]) -> list[int]:
        with self.lock:
            return tokens.count_tokens(self.tokenizer, inputs)


@dataclass
class DeltaCache:
    """Unpacked deltas, on their model's device, least recently used out first."""

    max_bytes: int = DELTA_CACHE_BYTES
    num_bytes: int = 0
    entries: OrderedDict[tuple[str, str], tuple[int, LayerDelta]] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: tuple[str, str]) -> LayerDelta | None:
        with self.lock:
            if key not in self.entries:
                return None
            self.entries.move_to_end(key)
            return self.entries[key][1]

    def put(self, key: tuple[str, str], num_bytes: int, delta: LayerDelta) -> None:
        with self.lock:
            if key in self.entries:
                return
            self.entries[key] = (num_bytes, delta)
            self.num_bytes += num_bytes
            while self.num_bytes > self.max_bytes and len(self.entries) > 1:
                _, (freed, _) = self.entries.popitem(last=False)
                self.num_bytes -= freed


class Engine:
    """Answers for any version of any hosted model."""

    def __init__(
        self,
        blobs: BlobStore,
        *,
        models_root: Path,
        device: str = "auto",
        max_resident_models: int = 4,
        num_threads: int = 0,
    ) -> None:
        if num_threads:
            torch.set_num_threads(num_threads)
        self._blobs = blobs
        self._models_root = models_root
        self._device = device
        self._residents = Residents(max_resident_models)  # by identity and task
        self._lock = threading.Lock()
        self._counters: dict[str, Counter] = {}  # by identity
        self._deltas = DeltaCache()
        # By the name of the blob. Deltas hold on to them: one that none of the kept deltas names is let go.
        self._metrics: WeakValueDictionary[str, Metric] = WeakValueDictionary()

    def predict(
        self,
        model: HostedModel,
        version: Version,
        inputs: Sequence[TextInput],
        *,
        max_new_tokens: int,
        explain: bool = False,
    ) -> list[Prediction]:
        """Answer each input as the version; with `explain`, say which edit matched it.

        Raises:
            ModelNotReady: the model is not registered, or its files are no longer those that were.
            UnsupportedModel: the folder cannot be loaded any more.
            DeltaRejected: a stored delta fails its checks.
            BlobMissing, BlobCorrupted: a file of the version is gone or damaged.
        """
        place = f"{self._identity(model)}/{model.task}"
        # Before the lock: what is slow to fetch for one version holds up no other.
        try:
            fetched = [self._fetched(model, delta) for delta in version.deltas]
        except (BlobMissing, BlobCorrupted) as error:
            answer = f"{version.reference} cannot answer: {error.message}"
            raise type(error)(answer, remedy=error.remedy) from error
        with self._residents.held(place) as resident, resident.lock:
            if resident.network is None:
                resident.network = self._load(model)
            # Another release may find other layers; deltas are read by those that were registered.
            network = replace(resident.network, layers=model.layers)
            deltas = [
                self._placed(model, delta, unpacked, network)
                for delta, unpacked in zip(version.deltas, fetched, strict=True)
            ]
            answers = predict.predict(network, inputs, deltas, max_new_tokens=max_new_tokens)
        if not explain:
            return [Prediction(output=answer.output, scores=answer.scores) for answer in answers]
        return [
            ExplainedPrediction(
                output=answer.output, scores=answer.scores, match=match_of(version.deltas, answer.match)
            )
            for answer in answers
        ]

    def count_tokens(self, model: HostedModel, inputs: Sequence[TextInput]) -> list[int]:
        """Tokens of each input as the model would see it; needs the tokenizer only, not the weights."""
        key = self._identity(model)
        counter = self._counters.get(key)
        if counter is None:
            folder = folders.registered_folder(model, self._models_root)
            folders.check_descriptions(folder, model)
            counter = Counter(loading.load_tokenizer(folder))
            with self._lock:
                counter = self._counters.setdefault(key, counter)
        return counter.count(inputs)

    def check_source(self, source: Source) -> None:
        """Refuse a folder that is not there before a job is made of it; a hub is asked by the worker only.

        Raises:
            UnsupportedModel: says what is missing.
        """
        if isinstance(source, FolderSource):
            folders.check_folder(folders.locate(source, self._models_root))

    def close(self) -> None:
        """Let go of every model."""
        self._residents.clear()
        with self._lock:
            self._counters.clear()

    def _load(self, model: HostedModel) -> Network:
        """What was registered, its weights in memory of their own, whatever becomes of the folder later."""
        folder = folders.registered_folder(model, self._models_root)
        with folders.ensure_unchanged(folder, model.name):
            folders.check_registered(folder, model)
            return loading.copy_into_memory(loading.load(folder, model.task, device=self._device))

    def _fetched(self, model: HostedModel, delta: Delta) -> LayerDelta:
        """A delta as it is kept, or as it is stored."""
        kept = self._deltas.get((self._identity(model), delta.blob))
        if kept is not None:
            return kept
        data = self._blobs.get(delta.blob)
        return unpack(data, base_sha256=str(model.sha256), layers=model.layers, metric=self._metric)

    def _placed(self, model: HostedModel, delta: Delta, unpacked: LayerDelta, network: Network) -> LayerDelta:
        """A delta where its model is and of its type, kept."""
        key = (self._identity(model), delta.blob)
        kept = self._deltas.get(key)
        if kept is None:
            kept = unpacked.to(network.device, network.model.dtype)
            self._deltas.put(key, delta.num_bytes, kept)
        return kept

    def _metric(self, name: str) -> Metric:
        """A scope metric, shared by the deltas that name it."""
        metric = self._metrics.get(name)
        if metric is None:
            metric = unpack_metric(self._blobs.get(name)).to(resolve_device(self._device))
            with self._lock:
                metric = self._metrics.setdefault(name, metric)
        return metric

    def _identity(self, model: HostedModel) -> str:
        """What was registered: sha256 of the weights, and of labels and tokenizer where that was noted."""
        if model.state is not ModelState.READY or model.sha256 is None:
            raise ModelNotReady(f'"{model.name}" is {model.state}', remedy="Wait for its registration job")
        return f"{model.sha256}/{model.descriptions_sha256 or model.name}"


def match_of(deltas: Sequence[Delta], match: EntryMatch | None) -> Match | None:
    """The edit behind an entry of a version's deltas, in the version's order."""
    if match is None:
        return None
    delta = deltas[match.delta]
    assert delta.version is not None, "a published delta has its number"
    edit_id = EditId(delta.version, delta.index_of(match.entry))
    return Match(edit_id=str(edit_id), margin=round(match.margin, 6))
