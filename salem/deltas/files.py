"""Delta files: packs a delta into a safetensors file, and reads it back with every check a server needs.

The file holds `terms.<i>.<field>` tensors, and a header that ties it to one base and one layer. Scoped terms
name the file of their metric, which they share. Must not know what a delta does, or where files are kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

from salem.deltas.terms import Dense, LayerDelta, LowRank, Scoped, Term
from salem.errors import DeltaRejected
from salem.models import tensor_files
from salem.records import Layer
from salem.scope.metric import Metric
from salem.scope.scope import Scope

_KEY = re.compile(r"terms\.(0|[1-9][0-9]{0,5})\.([a-z_]+)")
_DIMENSIONS = (
    dict.fromkeys(("radii", "owners", "first_token_weights", "lexical_weights"), 1)
    | dict.fromkeys(("a", "b", "weight", "keys", "token_ids", "token_probabilities", "words"), 2)
    | dict.fromkeys(("values", "down", "up"), 3)
)
_OF_SCOPE = frozenset(field.name for field in fields(Scope)) - {"metric"}
_FIELDS: Mapping[type[Term], frozenset[str]] = {
    LowRank: frozenset({"a", "b"}),
    Dense: frozenset({"weight"}),
    Scoped: _OF_SCOPE | {"values", "down", "up"},
}


def pack(delta: LayerDelta, *, base_sha256: str, **header: Any) -> bytes:
    """Pack a delta as a safetensors file. `header` values are stored as JSON.

    A scoped term is stored with the name of its metric's file, not with the metric.
    """
    tensors = {
        f"terms.{index}.{name}": value
        for index, term in enumerate(delta.terms)
        for name, value in term_tensors(term).items()
    }
    metadata = {key: json.dumps(value, sort_keys=True) for key, value in header.items()}
    if delta.scoped:
        name = delta.scoped.scope.metric.sha256
        assert name, "a metric is named by its file before a delta refers to it"
        metadata["metric"] = name
    return tensor_files.write(tensors, metadata | {"base_sha256": base_sha256, "layer": delta.layer})


def unpack(
    data: bytes, *, base_sha256: str, layers: Sequence[Layer], metric: Callable[[str], Metric] | None = None
) -> LayerDelta:
    """Read a delta file and check it against its model.

    Args:
        metric: returns the scope metric with a file name (sha256); needed for scoped terms.

    Raises:
        DeltaRejected: not a safetensors file, another format version, a wrong checksum, another base, or an
            unknown layer; or a term has unknown or missing fields, a wrong shape or type, or a value that is
            not finite.
    """
    header, tensors = tensor_files.read(data, noun="delta", texts=("words",))
    if header.get("base_sha256") != base_sha256:
        raise DeltaRejected("The delta was made for other base weights.")
    layer = next((layer for layer in layers if layer.path == header.get("layer")), None)
    if layer is None:
        raise DeltaRejected(f"The delta names a layer that the model does not have: {header.get('layer')}.")
    known = metric(header["metric"]) if metric and "metric" in header else None
    return LayerDelta(layer.path, _terms(tensors, layer, known))


def term_tensors(term: Term) -> dict[str, Tensor]:
    """The fields that a term's file holds."""
    fields_of = {**vars(term.scope), **vars(term)} if isinstance(term, Scoped) else vars(term)
    return {name: value for name, value in fields_of.items() if isinstance(value, Tensor)}


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
    kind = next((kind for kind, names in _FIELDS.items() if names == tensors.keys()), None)
    if kind is None or any(tensor.dim() != _DIMENSIONS[name] for name, tensor in tensors.items()):
        raise DeltaRejected(f"A term with the fields {sorted(tensors)} is of no known kind.")
    if issubclass(kind, LowRank | Dense):
        return kind(**tensors)
    if metric is None:
        raise DeltaRejected("The delta does not name the metric of its scopes.")
    scope = Scope(metric, **{name: tensors.pop(name) for name in _OF_SCOPE})
    return Scoped(scope, **tensors)
