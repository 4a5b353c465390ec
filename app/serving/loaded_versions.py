"""Loaded versions: the joined deltas of versions, kept under a byte budget, least recently used out first.

Each blob of a version is read once. A version that extends a loaded one reads only its own new deltas, and
all versions of a hosted model share one metric. Must not know networks, or what a version answers.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from weakref import WeakValueDictionary

import torch

from salem.deltas.chain import Chain
from salem.deltas.files import Readers, unpack
from salem.models.devices import resolve_device
from salem.records import Delta, HostedModel
from salem.scope.encoder_files import encoder_named
from salem.scope.metric import Metric
from salem.scope.metric_files import unpack_metric
from salem.storage.blobs import BlobStore

MAX_BYTES = 256 * 2**20
READERS = 16  # blobs that are read at the same time: a remote store answers slowly, but many at once
PART = 64  # deltas that are unpacked before they are joined: bounds what loading needs besides the result

Key = tuple[str, bytes]  # the identity of the model, and a hash of the names of the deltas' blobs


@dataclass
class ChainCache:
    """Chains by key, on their model's device."""

    max_bytes: int = MAX_BYTES
    num_bytes: int = 0
    chains: OrderedDict[Key, tuple[int, Chain]] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: Key) -> Chain | None:
        with self.lock:
            if key not in self.chains:
                return None
            self.chains.move_to_end(key)
            return self.chains[key][1]

    def put(self, key: Key, chain: Chain) -> None:
        """Keep a chain, and drop others beyond the budget; the newest one always stays."""
        with self.lock:
            if key in self.chains:
                return
            self.chains[key] = (chain.num_bytes, chain)
            self.num_bytes += chain.num_bytes
            while self.num_bytes > self.max_bytes and len(self.chains) > 1:
                _, (freed, _) = self.chains.popitem(last=False)
                self.num_bytes -= freed


@dataclass(frozen=True)
class Fetched:
    """A version's deltas: those that are on the model's device already, and the rest as stored."""

    key: Key
    loaded: Chain | None
    rest: Chain | None


class LoadedVersions:
    """Reads versions from the blob store and keeps them. Threads share it."""

    def __init__(self, blobs: BlobStore, device: str, scope_encoder: str) -> None:
        self._blobs, self._device = blobs, device
        self._readers = Readers(self._metric, partial(encoder_named, source=scope_encoder))
        self._cache = ChainCache()
        # By blob name. Chains hold on to their metrics: one that no kept chain uses is dropped.
        self._metrics: WeakValueDictionary[str, Metric] = WeakValueDictionary()
        self._lock = threading.Lock()

    def fetch(self, model: HostedModel, identity: str, deltas: Sequence[Delta]) -> Fetched:
        """Read what is not loaded yet. Slow, so call it without holding a model.

        Raises:
            DeltaRejected: a stored delta fails its checks.
            BlobMissing, BlobCorrupted: a file of the version is gone or damaged.
        """
        names = [delta.blob for delta in deltas]
        key = identity, hashlib.sha256("".join(names).encode()).digest()
        loaded = self._cache.get(key)
        if loaded is not None:
            return Fetched(key, loaded, None)
        loaded = self._longest_prefix(identity, names)
        rest = self._read(model, names[loaded.num_deltas if loaded else 0 :])
        return Fetched(key, loaded, rest)

    def join(self, fetched: Fetched, device: torch.device, dtype: torch.dtype) -> Chain:
        """The whole version where its model is and in its type, kept for the next time."""
        if fetched.rest is None and fetched.loaded is not None:
            return fetched.loaded
        parts = [fetched.loaded, fetched.rest and fetched.rest.to(device, dtype)]
        chain = Chain.concat([part for part in parts if part is not None])
        self._cache.put(fetched.key, chain)
        return chain

    def _longest_prefix(self, identity: str, names: Sequence[str]) -> Chain | None:
        """The longest loaded chain that a version's blobs begin with."""
        digests: list[bytes] = []
        running = hashlib.sha256()
        for name in names[:-1]:
            running.update(name.encode())
            digests.append(running.digest())
        found = (self._cache.get((identity, digest)) for digest in reversed(digests))
        return next((chain for chain in found if chain is not None), None)

    def _read(self, model: HostedModel, names: Sequence[str]) -> Chain:
        """The deltas with these blob names, joined, on the CPU."""
        base, layers = str(model.sha256), model.layers
        parts: list[Chain] = []
        for part in _in_parts(names):
            with ThreadPoolExecutor(READERS) as pool:
                files = pool.map(self._blobs.get, part)
            deltas = [unpack(data, base_sha256=base, layers=layers, readers=self._readers) for data in files]
            parts.append(Chain.of(deltas))
        return Chain.concat(parts)

    def _metric(self, name: str) -> Metric:
        """The scope metric with this blob name, one object for all deltas that use it."""
        metric = self._metrics.get(name)
        if metric is None:
            metric = unpack_metric(self._blobs.get(name)).to(resolve_device(self._device))
            with self._lock:
                metric = self._metrics.setdefault(name, metric)
        return metric


def _in_parts(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), PART):
        yield names[start : start + PART]
