"""The engine: answers as any version of any hosted model, from one copy of each model's weights.

Only this room of the API reaches torch. A version is its model with deltas hooked on while it answers, so the
base weights are never written. Methods block, so call them from a thread. Must not know HTTP, SQL, or jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedTokenizerBase

from app.serving.loaded_models import LoadedModels
from app.serving.loaded_versions import Fetched, LoadedVersions
from app.serving.tokenizers import LockedTokenizer, TokenizerCache
from salem.deltas.chain import EntryMatch
from salem.errors import BlobCorrupted, BlobMissing, ModelNotReady
from salem.inference import predict
from salem.models import folders, loading
from salem.models.chat import TurnFinder
from salem.models.digests import FileDigests
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
from salem.settings import Settings
from salem.storage.blobs import BlobStore


class Engine:
    """Answers for any version of any hosted model."""

    def __init__(self, blobs: BlobStore, settings: Settings) -> None:
        if settings.num_threads:
            torch.set_num_threads(settings.num_threads)
        self._models_root = settings.effective_models_root
        self._device = settings.device
        self._digests = FileDigests(settings.file_digests)
        self._models = LoadedModels(settings.max_resident_models)  # by identity and task
        self._tokenizers = TokenizerCache(settings.max_resident_models)  # by identity
        self._versions = LoadedVersions(blobs, settings.device, settings.scope_encoder)

    def predict(
        self,
        model: HostedModel,
        version: Version,
        inputs: Sequence[TextInput],
        *,
        max_new_tokens: int,
        explain: bool = False,
    ) -> list[Prediction]:
        """Answer each input as the version. With `explain`, each answer says which edit matched.

        Raises:
            ModelNotReady: the model is not registered, or its files have changed since.
            UnsupportedModel: the folder can no longer be loaded.
            DeltaRejected: a stored delta fails its checks.
            BlobMissing, BlobCorrupted: a file of the version is gone or damaged.
        """
        fetched = self._fetched(model, version)  # before the lock: a slow store delays no other version
        with self._models.use(f"{self._identity(model)}/{model.task}") as place, place.lock:
            if place.network is None:
                place.network = self._load(model)
            # The layers that were registered: another release of Salem may find others.
            network = replace(place.network, layers=model.layers)
            chain = self._versions.join(fetched, network.device, network.model.dtype)
            answers = predict.predict(network, inputs, chain, max_new_tokens=max_new_tokens)
        if not explain:
            return [Prediction(output=answer.output, scores=answer.scores) for answer in answers]
        return [
            ExplainedPrediction(
                output=answer.output, scores=answer.scores, match=match_of(version.deltas, answer.match)
            )
            for answer in answers
        ]

    def count_tokens(self, model: HostedModel, inputs: Sequence[TextInput]) -> list[int]:
        """The tokens of each input as the model sees it. Needs the tokenizer only, not the weights."""
        return self._tokenizer(model).count(inputs)

    def turns(self, model: HostedModel) -> TurnFinder:
        """Finds the last user turn in a prompt of a chat model. Needs the tokenizer only."""
        return self._tokenizer(model).turns

    def _tokenizer(self, model: HostedModel) -> LockedTokenizer:
        def load() -> PreTrainedTokenizerBase:
            folder = folders.registered_folder(model, self._models_root)
            folders.check_descriptions(folder, model)
            return loading.load_tokenizer(folder)

        return self._tokenizers.get(self._identity(model), load)

    def check_source(self, source: Source) -> None:
        """Refuse a missing folder before a job is created for it. Only the worker asks a hub.

        Raises:
            UnsupportedModel: says what is missing.
        """
        if isinstance(source, FolderSource):
            folders.check_folder(folders.locate(source, self._models_root))

    def close(self) -> None:
        """Drop every model and tokenizer."""
        self._models.clear()
        self._tokenizers.clear()

    def _load(self, model: HostedModel) -> Network:
        """The registered model, copied into memory, so later changes of its folder do not matter."""
        folder = folders.registered_folder(model, self._models_root)
        with folders.ensure_unchanged(folder, model.name):
            folders.check_registered(folder, model, self._digests)
            return loading.copy_into_memory(loading.load(folder, model.task, device=self._device))

    def _fetched(self, model: HostedModel, version: Version) -> Fetched:
        try:
            return self._versions.fetch(model, self._identity(model), version.deltas)
        except (BlobMissing, BlobCorrupted) as error:
            answer = f"{version.reference} cannot answer: {error.message}"
            raise type(error)(answer, remedy=error.remedy) from error

    def _identity(self, model: HostedModel) -> str:
        """The registered content: sha256 of the weights, and of labels and tokenizer if that was recorded."""
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
