"""Deltas: what a version adds to the output of one layer, and their files.

A delta is a sum of terms. A term maps the layer's input x [.., d_in] to an addition [.., d_out]; applying a
delta adds that to the layer's output with a hook, so the base weights are never written and how the layer
stores its weight (Linear or Conv1D) does not matter.

The file is safetensors: `terms.<i>.<field>` tensors and a header that ties it to one base, layer and parent
and holds a checksum of everything else in the file. The same delta and header give the same bytes, so a store
that names files by their content keeps one copy.

Does not know how a delta is made, where its file is kept, or which version it belongs to.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from salem.errors import DeltaRejected
from salem.records import Layer
from salem.scopes import Firing, Scoped

FORMAT_VERSION = "1"
_KEY = re.compile(r"terms\.(0|[1-9][0-9]{0,5})\.([a-z_]+)")

Addition = Callable[[Tensor], Tensor]  # [.., d_in] -> [.., d_out]


@dataclass(frozen=True)
class LowRank:
    """x -> (x aᵀ) bᵀ: the update b a of rank r."""

    a: Tensor  # [r, d_in]
    b: Tensor  # [d_out, r]

    kind: ClassVar[str] = "low_rank"

    def __call__(self, x: Tensor) -> Tensor:
        return (x @ self.a.T) @ self.b.T

    def dense(self) -> Tensor:
        """The same update as one matrix [d_out, d_in]."""
        return self.b @ self.a

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def fits(self, layer: Layer) -> bool:
        r = self.a.shape[0]
        return r > 0 and self.a.shape == (r, layer.d_in) and self.b.shape == (layer.d_out, r)


@dataclass(frozen=True)
class Dense:
    """x -> x weightᵀ."""

    weight: Tensor  # [d_out, d_in]

    kind: ClassVar[str] = "dense"
    rank: ClassVar[None] = None

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight.T

    def dense(self) -> Tensor:
        return self.weight

    def fits(self, layer: Layer) -> bool:
        return self.weight.shape == (layer.d_out, layer.d_in)


Term = LowRank | Dense | Scoped
_DIMENSIONS = {"centre": 1, "spread": 1, "radii": 1, "owners": 1, "down": 3, "up": 3} | dict.fromkeys(
    ("a", "b", "weight", "projection", "keys", "values"), 2
)
_UNREADABLE = "The delta is not a readable safetensors file."
_KINDS: Mapping[frozenset[str], type[Term]] = {
    frozenset(field.name for field in fields(kind)): kind for kind in (LowRank, Dense, Scoped)
}


@dataclass(frozen=True)
class LayerDelta:
    """The terms that a version adds to one layer."""

    layer: str
    terms: tuple[Term, ...]

    @property
    def scoped(self) -> Scoped | None:
        """The scoped term, where it has one; a delta holds at most one."""
        return next((term for term in self.terms if isinstance(term, Scoped)), None)

    def addition(self, firing: Firing | None = None) -> Addition:
        """What the delta adds, as a function of the layer's input; `firing` of the same inputs, if scoped."""
        additions = [act(term, firing) for term in self.terms]
        return lambda x: sum((add(x) for add in additions[1:]), start=additions[0](x))

    def to(self, device: torch.device, dtype: torch.dtype) -> LayerDelta:
        """On a device, in the model's type; scopes stay in float32, where their cosines are resolved."""
        moved = tuple(
            type(term)(**{k: v.to(device, _type_of(term, dtype)) for k, v in vars(term).items()})
            for term in self.terms
        )
        return LayerDelta(self.layer, moved)


def act(term: Term, firing: Firing | None) -> Addition:
    """A term as a function of the layer's input alone."""
    if not isinstance(term, Scoped):
        return term
    assert firing is not None, "a scoped term needs to know what fires"
    return partial(term.act, firing=firing)


def _type_of(term: Term, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if isinstance(term, Scoped) else dtype


@contextmanager
def adding(module: nn.Module, addition: Addition) -> Iterator[None]:
    """While active, `module` returns its output plus `addition` of its input."""

    def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output + addition(args[0])

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def applied(
    model: nn.Module, deltas: Sequence[LayerDelta], firings: Sequence[Firing | None] | None = None
) -> Iterator[None]:
    """While active, the model answers as the version with these deltas; the parent's come first.

    `firings` holds one item per delta, for the inputs about to be answered; plain deltas have None.
    """
    firings = firings or [None] * len(deltas)
    with ExitStack() as stack:
        for delta, firing in zip(deltas, firings, strict=True):
            stack.enter_context(adding(model.get_submodule(delta.layer), delta.addition(firing)))
        yield


def pack(delta: LayerDelta, *, base_sha256: str, **header: Any) -> bytes:
    """A delta as the bytes of a safetensors file of float32; `header` values are stored as JSON.

    safetensors writes metadata in an order that changes from call to call, so the header is written here.
    """
    tensors = {
        f"terms.{index}.{name}": value.detach().to("cpu", torch.float32).contiguous().clone()
        for index, term in enumerate(delta.terms)
        for name, value in vars(term).items()
    }
    fixed = {"format_version": FORMAT_VERSION, "base_sha256": base_sha256, "layer": delta.layer}
    metadata = {key: json.dumps(value, sort_keys=True) for key, value in header.items()} | fixed
    described, body = _split(save_tensors(tensors))
    described["__metadata__"] = metadata
    metadata["content_sha256"] = _content_sha256(described, body)
    text = json.dumps(described, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + body


def unpack(data: bytes, *, base_sha256: str, layers: Sequence[Layer]) -> LayerDelta:
    """Read a delta file and check all of it against the model that it is for.

    Raises:
        DeltaRejected: no safetensors, another format version, content that does not fit its checksum, another
            base, an unknown layer, and for each term unknown or missing fields, a wrong shape, a type other
            than float32, or a value that is not finite.
    """
    described, body = _split(data)
    header = _metadata(described)
    if header.get("format_version") != FORMAT_VERSION:
        found = header.get("format_version", "of no version")[:40]
        raise DeltaRejected(f"The delta has format {found}; this server reads {FORMAT_VERSION}.")
    if header.get("content_sha256") != _content_sha256(described, body):
        raise DeltaRejected("The delta's content does not fit its checksum: the file is damaged.")
    if header.get("base_sha256") != base_sha256:
        raise DeltaRejected("The delta was made for other base weights.")
    layer = next((layer for layer in layers if layer.path == header.get("layer")), None)
    if layer is None:
        raise DeltaRejected(f"The delta names a layer that the model does not have: {header.get('layer')}.")
    try:
        tensors = load_tensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise DeltaRejected(_UNREADABLE) from error
    return LayerDelta(layer.path, _terms(tensors, layer))


def read_header(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file, or {} where it has none.

    Raises:
        DeltaRejected: the header cannot be read.
    """
    return _metadata(_split(data)[0])


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the tensors' bytes of a safetensors file."""
    end = 8 + int.from_bytes(data[:8], "little")
    try:
        described = json.loads(data[8:end])
    except (ValueError, RecursionError) as error:
        raise DeltaRejected(_UNREADABLE) from error
    if not isinstance(described, dict):
        raise DeltaRejected(_UNREADABLE)
    return described, data[end:]


def _metadata(described: Mapping[str, Any]) -> dict[str, str]:
    metadata = described.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise DeltaRejected(_UNREADABLE)
    return metadata


def _content_sha256(described: Mapping[str, Any], body: bytes) -> str:
    """sha256 of the header as sorted JSON, without this checksum itself, followed by the tensors' bytes."""
    metadata = {key: value for key, value in _metadata(described).items() if key != "content_sha256"}
    text = json.dumps({**described, "__metadata__": metadata}, sort_keys=True)
    return hashlib.sha256(text.encode() + body).hexdigest()


def _terms(tensors: dict[str, Tensor], layer: Layer) -> tuple[Term, ...]:
    grouped: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise DeltaRejected(f'The delta holds an unexpected tensor "{key[:80]}".')
        _check_tensor(key, tensor)
        grouped.setdefault(int(match[1]), {})[match[2]] = tensor
    if sorted(grouped) != list(range(len(grouped))) or not grouped:
        raise DeltaRejected("The delta's terms are not numbered from 0 without gaps.")
    terms = [_term(grouped[index]) for index in range(len(grouped))]
    if sum(isinstance(term, Scoped) for term in terms) > 1:
        raise DeltaRejected("The delta holds more than one scoped term.")
    if not all(term.fits(layer) for term in terms):
        raise DeltaRejected(f"A term's shape does not fit {layer.path} [{layer.d_out}, {layer.d_in}].")
    return tuple(terms)


def _term(tensors: dict[str, Tensor]) -> Term:
    kind = _KINDS.get(frozenset(tensors))
    if kind is None or any(tensor.dim() != _DIMENSIONS[name] for name, tensor in tensors.items()):
        raise DeltaRejected(f"A term with the fields {sorted(tensors)} is of no known kind.")
    return kind(**tensors)


def _check_tensor(key: str, tensor: Tensor) -> None:
    if tensor.dtype != torch.float32:
        raise DeltaRejected(f"{key} has type {tensor.dtype}; deltas are stored as float32.")
    if not torch.isfinite(tensor).all():
        raise DeltaRejected(f"{key} holds values that are not finite.")
