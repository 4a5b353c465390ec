"""Files of named tensors with a header: safetensors with a checksum over the whole file.

The same tensors and header give the same bytes, so a content-addressed store keeps one copy. Values are
finite, in float32 or float16; texts are uint8. Must not know what the tensors mean.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from salem.errors import DeltaRejected

FORMAT_VERSION = "2"
TEXT = torch.uint8
HALF = torch.float16


def write(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> bytes:
    """The bytes of a file. safetensors writes metadata in varying order; here it is sorted."""
    stored = {
        name: value.detach()
        .to("cpu", value.dtype if value.dtype in (TEXT, HALF) else torch.float32)
        .contiguous()
        .clone()
        for name, value in tensors.items()
    }
    described, body = _split(save_tensors(stored), "file")
    metadata = {**header, "format_version": FORMAT_VERSION}
    described["__metadata__"] = metadata
    metadata["content_sha256"] = _content_sha256(described, body)
    text = json.dumps(described, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + body


def read(
    data: bytes, *, noun: str, texts: Collection[str] = (), dtype: torch.dtype = torch.float32
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The header and the tensors of a file that `write` made.

    Args:
        noun: what error messages call the file.
        texts: names of tensors that hold text; for a dotted name, its last part.
        dtype: of the other tensors.

    Raises:
        DeltaRejected: not a safetensors file, another format version, a wrong checksum, a wrong type, or a
            value that is not finite.
    """
    described, body = _split(data, noun)
    header = _metadata(described, noun)
    if header.get("format_version") != FORMAT_VERSION:
        found = header.get("format_version", "of no version")[:40]
        raise DeltaRejected(f"The {noun} has format {found}; this server reads {FORMAT_VERSION}.")
    if header.get("content_sha256") != _content_sha256(described, body):
        raise DeltaRejected(f"The {noun}'s content does not match its checksum: the file is damaged.")
    try:
        tensors = load_tensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise _unreadable(noun) from error
    for name, tensor in tensors.items():
        _check(name, tensor, TEXT if name.rpartition(".")[2] in texts else dtype)
    return header, tensors


def read_header(data: bytes, *, noun: str = "delta") -> dict[str, str]:
    """The metadata of a safetensors file, or {} if it has none.

    Raises:
        DeltaRejected: the header cannot be read.
    """
    return _metadata(_split(data, noun)[0], noun)


def _unreadable(noun: str) -> DeltaRejected:
    return DeltaRejected(f"The {noun} is not a readable safetensors file.")


def _split(data: bytes, noun: str) -> tuple[dict[str, Any], bytes]:
    """The header and the tensors' bytes of a safetensors file."""
    end = 8 + int.from_bytes(data[:8], "little")
    try:
        described = json.loads(data[8:end])
    except (ValueError, RecursionError) as error:
        raise _unreadable(noun) from error
    if not isinstance(described, dict):
        raise _unreadable(noun)
    return described, data[end:]


def _metadata(described: Mapping[str, Any], noun: str) -> dict[str, str]:
    metadata = described.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _unreadable(noun)
    return metadata


def _content_sha256(described: Mapping[str, Any], body: bytes) -> str:
    """sha256 of the header (as sorted JSON, without the checksum itself) and the tensors' bytes."""
    metadata = {key: value for key, value in described["__metadata__"].items() if key != "content_sha256"}
    text = json.dumps({**described, "__metadata__": metadata}, sort_keys=True)
    return hashlib.sha256(text.encode() + body).hexdigest()


def _check(name: str, tensor: Tensor, wanted: torch.dtype) -> None:
    if tensor.dtype != wanted:
        raise DeltaRejected(f"{name} has type {tensor.dtype} instead of {wanted}.")
    if not torch.isfinite(tensor).all():
        raise DeltaRejected(f"{name} holds values that are not finite.")
