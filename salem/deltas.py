"""Deltas: what a version adds to the output of one layer, and their files.

A delta is a sum of terms. A term maps the layer's input x [.., d_in] to an addition [.., d_out]; applying a
delta adds that to the layer's output with a hook, so the base weights are never written and how the layer
stores its weight (Linear or Conv1D) does not matter.

The file holds `terms.<i>.<field>` tensors and a header that ties it to one base, layer and parent; scoped
terms name the file of their metric, which they share.

Does not know how a delta is made, where its file is kept, or which version it belongs to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from salem import tensor_files
from salem.errors import DeltaRejected
from salem.records import Layer
from salem.scopes import Firing, Metric, Scoped, Writing

_KEY = re.compile(r"terms\.(0|[1-9][0-9]{0,5})\.([a-z_]+)")

Addition = Callable[[Tensor], Tensor]  # [.., d_in] -> [.., d_out]


@dataclass(frozen=True)
class LowRank:
    """x -> (x aᵀ) bᵀ: the update b a of rank r."""

    a: Tensor  # [r, d_in]
    b: Tensor  # [d_out, r]

    kind: ClassVar[str] = "low_rank"

    def __call__(self, x: Tensor) -> Tensor:
        return (x.to(self.a.dtype) @ self.a.T @ self.b.T).to(x.dtype)

    def dense(self) -> Tensor:
        """The same update as one matrix [d_out, d_in]."""
        return self.b @ self.a

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def to(self, device: torch.device, dtype: torch.dtype) -> LowRank:
        return LowRank(self.a.to(device, dtype), self.b.to(device, dtype))

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
        return (x.to(self.weight.dtype) @ self.weight.T).to(x.dtype)

    def dense(self) -> Tensor:
        return self.weight

    def to(self, device: torch.device, dtype: torch.dtype) -> Dense:
        return Dense(self.weight.to(device, dtype))

    def fits(self, layer: Layer) -> bool:
        return self.weight.shape == (layer.d_out, layer.d_in)


Term = LowRank | Dense | Scoped
_DIMENSIONS = (
    dict.fromkeys(("radii", "owners", "doubts"), 1)
    | dict.fromkeys(("a", "b", "weight", "keys", "said", "shares"), 2)
    | dict.fromkeys(("values", "down", "up"), 3)
)
_KINDS: Mapping[frozenset[str], type[Term]] = {
    frozenset(field.name for field in fields(kind) if field.name != "metric"): kind
    for kind in (LowRank, Dense, Scoped)
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

    def addition(self, firing: Callable[[], Firing | None] = lambda: None) -> Addition:
        """What the delta adds, as a function of the layer's input; `firing` is asked when it acts.

        Serves one batch: of a generated answer it is to see every pass, once.
        """
        writing = Writing()

        def add(x: Tensor) -> Tensor:
            parts = [act(term, firing(), writing)(x) for term in self.terms]
            return sum(parts[1:], start=parts[0])

        return add

    def to(self, device: torch.device, dtype: torch.dtype) -> LayerDelta:
        """On a device, in the model's type; scopes stay in float32."""
        return LayerDelta(self.layer, tuple(term.to(device, dtype) for term in self.terms))


def act(term: Term, firing: Firing | None, writing: Writing | None = None) -> Addition:
    """A term as a function of the layer's input alone."""
    if not isinstance(term, Scoped):
        return term
    assert firing is not None, "a scoped term needs to know what fires"
    return partial(term.act, firing=firing, writing=writing)


def _never() -> bool:
    return False


@contextmanager
def adding(module: nn.Module, addition: Addition, resting: Callable[[], bool] = _never) -> Iterator[None]:
    """While active, `module` returns its output plus `addition` of its input, but when it is `resting`."""

    def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output if resting() else output + addition(args[0])

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def applied(
    model: nn.Module,
    deltas: Sequence[LayerDelta],
    firings: Sequence[Firing | None] | None = None,
    resting: Callable[[], bool] = _never,
) -> Iterator[None]:
    """While active, the model answers as the version with these deltas; the parent's come first.

    `firings` holds one item per delta, for the inputs about to be answered; plain deltas have None. An item
    is read when its delta acts, so it may still be decided while the model runs. While `resting` says so, the
    model answers as its base.
    """
    firings = [None] * len(deltas) if firings is None else firings
    with ExitStack() as stack:
        for index, delta in enumerate(deltas):
            addition = delta.addition(partial(firings.__getitem__, index))
            stack.enter_context(adding(model.get_submodule(delta.layer), addition, resting))
        yield


def pack(delta: LayerDelta, *, base_sha256: str, **header: Any) -> bytes:
    """A delta as the bytes of a safetensors file of float32; `header` values are stored as JSON.

    A scoped term names its metric, whose file stands beside it.
    """
    tensors = {
        f"terms.{index}.{name}": value
        for index, term in enumerate(delta.terms)
        for name, value in _tensors(term).items()
    }
    metadata = {key: json.dumps(value, sort_keys=True) for key, value in header.items()}
    if delta.scoped:
        assert delta.scoped.metric.sha256, "a metric is named by its file before a delta refers to it"
        metadata["metric"] = delta.scoped.metric.sha256
    return tensor_files.write(tensors, metadata | {"base_sha256": base_sha256, "layer": delta.layer})


def unpack(
    data: bytes, *, base_sha256: str, layers: Sequence[Layer], metric: Callable[[str], Metric] | None = None
) -> LayerDelta:
    """Read a delta file and check all of it against the model that it is for.

    Args:
        metric: gives the scope metric of a file name (sha256), for scoped terms.

    Raises:
        DeltaRejected: no safetensors, another format version, content that does not fit its checksum, another
            base, an unknown layer, and for each term unknown or missing fields, a wrong shape, a type other
            than float32, or a value that is not finite.
    """
    header, tensors = tensor_files.read(data, noun="delta")
    if header.get("base_sha256") != base_sha256:
        raise DeltaRejected("The delta was made for other base weights.")
    layer = next((layer for layer in layers if layer.path == header.get("layer")), None)
    if layer is None:
        raise DeltaRejected(f"The delta names a layer that the model does not have: {header.get('layer')}.")
    known = metric(header["metric"]) if metric and "metric" in header else None
    return LayerDelta(layer.path, _terms(tensors, layer, known))


def _tensors(term: Term) -> dict[str, Tensor]:
    """The fields that a term's file holds."""
    return {name: value for name, value in vars(term).items() if isinstance(value, Tensor)}


def _terms(tensors: dict[str, Tensor], layer: Layer, metric: Metric | None) -> tuple[Term, ...]:
    grouped: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise DeltaRejected(f'The delta holds an unexpected tensor "{key[:80]}".')
        grouped.setdefault(int(match[1]), {})[match[2]] = tensor
    if sorted(grouped) != list(range(len(grouped))) or not grouped:
        raise DeltaRejected("The delta's terms are not numbered from 0 without gaps.")
    terms = [_term(grouped[index], metric) for index in range(len(grouped))]
    if sum(isinstance(term, Scoped) for term in terms) > 1:
        raise DeltaRejected("The delta holds more than one scoped term.")
    if not all(term.fits(layer) for term in terms):
        raise DeltaRejected(f"A term's shape does not fit {layer.path} [{layer.d_out}, {layer.d_in}].")
    return tuple(terms)


def _as_written_now(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The fields of a term from a file of any age."""
    if {"keys", "values"} <= tensors.keys():
        if tensors["values"].dim() == 2:  # [e, d_out], as first written: one for all positions
            tensors = tensors | {"values": tensors["values"].unsqueeze(1)}
        if not {"said", "shares", "doubts"} & tensors.keys():  # scopes that did not ask the base
            num = len(tensors["keys"])
            silent = {"said": torch.zeros(num, 0), "shares": torch.zeros(num, 0), "doubts": torch.zeros(num)}
            tensors = tensors | silent
    return tensors


def _term(tensors: dict[str, Tensor], metric: Metric | None) -> Term:
    tensors = _as_written_now(tensors)
    kind = _KINDS.get(frozenset(tensors))
    if kind is None or any(tensor.dim() != _DIMENSIONS[name] for name, tensor in tensors.items()):
        raise DeltaRejected(f"A term with the fields {sorted(tensors)} is of no known kind.")
    fields_given: dict[str, Any] = dict(tensors)
    if kind is Scoped:
        if metric is None:
            raise DeltaRejected("The delta does not name the metric of its scopes.")
        fields_given["metric"] = metric
    return kind(**fields_given)
