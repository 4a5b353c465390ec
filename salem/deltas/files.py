"""Delta files: a delta as the bytes of a safetensors file, and back, with every check that a server needs.

The file holds `terms.<i>.<field>` tensors and a header that ties it to one base, layer and parent; scoped
terms name the file of their metric, which they share. Does not know what a delta does, or where it is kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

from salem.deltas.terms import Dense, LayerDelta, LowRank, Term
from salem.errors import DeltaRejected
from salem.models import tensor_files
from salem.records import Layer
from salem.scope.metric import Metric
from salem.scope.scope import Scoped

_KEY = re.compile(r"terms\.(0|[1-9][0-9]{0,5})\.([a-z_]+)")
_DIMENSIONS = (
    dict.fromkeys(("radii", "owners", "doubts", "tolls"), 1)
    | dict.fromkeys(("a", "b", "weight", "keys", "said", "shares", "words"), 2)
    | dict.fromkeys(("values", "down", "up"), 3)
)
_KINDS: Mapping[frozenset[str], type[Term]] = {
    frozenset(field.name for field in fields(kind) if field.name != "metric"): kind
    for kind in (LowRank, Dense, Scoped)
}


def pack(delta: LayerDelta, *, base_sha256: str, **header: Any) -> bytes:
    """A delta as the bytes of a safetensors file; `header` values are stored as JSON.

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
            base, an unknown layer, and for each term unknown or missing fields, a wrong shape or type, or a
            value that is not finite.
    """
    header, tensors = tensor_files.read(data, noun="delta", texts=("words",))
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


def _term(tensors: dict[str, Tensor], metric: Metric | None) -> Term:
    kind = _KINDS.get(frozenset(tensors))
    if kind is None or any(tensor.dim() != _DIMENSIONS[name] for name, tensor in tensors.items()):
        raise DeltaRejected(f"A term with the fields {sorted(tensors)} is of no known kind.")
    fields_given: dict[str, Any] = dict(tensors)
    if kind is Scoped:
        if metric is None:
            raise DeltaRejected("The delta does not name the metric of its scopes.")
        fields_given["metric"] = metric
    return kind(**fields_given)
