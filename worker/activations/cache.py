"""A disk cache between jobs for tensors that were computed from samples, with a size limit.

A key is the hash of everything that an entry depends on: the model's weights and dtype, the layer, the
samples in their order, and more that the caller names. Equal keys mean equal bits, so a job gives the same
delta with a full cache, an empty one, or none. Entries are safetensors files, written by rename and read
memory-mapped; the least recently used are removed first. Any entry may vanish at any time; then it is
computed again.

Must not know models, layers, or what the tensors mean.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from salem.records import TextInput

_SUFFIX = ".safetensors"
_HEADER_BYTES = 4_096  # an upper bound for an entry's names and shapes
# Kernels of another release may round differently.
_RELEASE = f"3/{torch.__version__}/{transformers.__version__}"


@dataclass(frozen=True)
class SampleCache:
    """The entries of one model, in a folder that all models share."""

    folder: Path
    max_bytes: int  # of all entries together; a larger entry is not kept
    model: str  # whatever determines the model's arithmetic: sha256 of the weights, dtype, device

    def key(self, kind: str, samples: Sequence[TextInput], *more: str | int) -> str:
        """The name of an entry for these samples; `more` is what else it depends on."""
        threads = torch.get_num_threads()  # they change the order of sums
        digest = hashlib.sha256(json.dumps([_RELEASE, threads, self.model, kind, *more]).encode())
        for sample in samples:
            digest.update(sample.model_dump_json().encode() + b"\n")
        return digest.hexdigest()

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of an entry on the CPU, memory-mapped (do not write to them); None if it is missing."""
        path = self._path(key)
        try:
            tensors: dict[str, Tensor] = load_file(path)
            os.utime(path)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            structlog.get_logger().warning("cache entry not readable", key=key, reason=type(error).__name__)
            with suppress(OSError):
                path.unlink()
            return None
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Store tensors. A full disk or an unwritable folder is only logged: the cache is optional."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        if not tensors or size + _HEADER_BYTES > self.max_bytes:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._evict(self.max_bytes - size - _HEADER_BYTES)
            self._write(self._path(key), {name: _plain(tensor) for name, tensor in tensors.items()})
        except (OSError, SafetensorError) as error:
            structlog.get_logger().warning("cache entry not written", key=key, reason=type(error).__name__)

    @property
    def num_bytes(self) -> int:
        """Total size of all files."""
        return sum(size for _, size, _ in self._files())

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _write(self, path: Path, tensors: dict[str, Tensor]) -> None:
        handle, name = tempfile.mkstemp(dir=self.folder, suffix=".part")
        os.close(handle)
        try:
            save_file(tensors, name)
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)

    def _evict(self, max_bytes: int) -> None:
        """Remove the least recently used files until the rest fit, including those of killed writers."""
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """(time of last use in ns, bytes, path) of every file; other processes may add and remove files."""
        with suppress(FileNotFoundError):
            for path in self.folder.iterdir():
                with suppress(FileNotFoundError):
                    found = path.stat()
                    yield found.st_mtime_ns, found.st_size, path


def _plain(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU, as the file format needs it."""
    return tensor.detach().to("cpu", copy=True).contiguous()
