"""Delta files: packs a delta into a safetensors file, and reads it back with every check a server needs.

The file holds `terms.<i>.<field>` tensors, and a header that ties it to one base and one layer. Scoped terms
name the metric or the encoder that they share. Must not know what a delta does, or where files are kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from salem.deltas.terms import Dense, LayerDelta, LowRank, Scoped, Term
from salem.errors import DeltaRejected
from salem.models import tensor_files
from salem.records import Layer
from salem.scope.encoder import ScopeEncoder
from salem.scope.metric import Metric
from salem.scope.state_scope import StateScope
from salem.scope.text_scope import TextScope

_KEY = re.compile(r"terms\.(0|[1-9][0-9]{0,5})\.([a-z_]+)")
_DIMENSIONS = (
    dict.fromkeys(("radii", "bounds", "owners", "first_token_weights", "lexical_weights"), 1)
    | dict.fromkeys(("a", "b", "weight", "keys", "token_ids", "token_probabilities", "words", "texts"), 2)
    | dict.fromkeys(("values", "down", "up"), 3)
)
_READERS = frozenset({"metric", "encoder"})  # what compares inputs with keys; a file names it in its header
_OF_STATE_SCOPE, _OF_TEXT_SCOPE = (
    frozenset(field.name for field in fields(kind)) - _READERS for kind in (StateScope, TextScope)
)
# Header fields that `pack` writes itself.
OWN_HEADER = _READERS | {"format_version", "base_sha256", "layer", "content_sha256"}
_OF_ENTRIES = frozenset({"values", "down", "up"})
_PLAIN: Mapping[frozenset[str], type[LowRank | Dense]] = {
    frozenset({"a", "b"}): LowRank,
    frozenset({"weight"}): Dense,
}


@dataclass(frozen=True)
class Readers:
    """Finds, by the sha256 in a file's header, what its scopes compare inputs with."""

    metric: Callable[[str], Metric]
    encoder: Callable[[str], ScopeEncoder]  # raises `EncoderMissing` if this host has another one


def pack(delta: LayerDelta, *, base_sha256: str, **header: Any) -> bytes:
    """Pack a delta as a safetensors file. `header` values are stored as JSON.

    A scoped term is stored with the sha256 of its metric or its encoder, not with these.
    """
    tensors = {
        f"terms.{index}.{name}": value
        for index, term in enumerate(delta.terms)
        for name, value in term_tensors(term).items()
    }
    metadata = {key: json.dumps(value, sort_keys=True) for key, value in header.items()}
    if delta.scoped:
        scope = delta.scoped.scope
        assert scope.reader, "a metric is named by its file before a delta refers to it"
        metadata["encoder" if isinstance(scope, TextScope) else "metric"] = scope.reader
    return tensor_files.write(tensors, metadata | {"base_sha256": base_sha256, "layer": delta.layer})


def unpack(
    data: bytes, *, base_sha256: str, layers: Sequence[Layer], readers: Readers | None = None
) -> LayerDelta:
    """Read a delta file and check it against its model.

    Args:
        readers: find what scopes compare inputs with; needed for scoped terms.

    Raises:
        DeltaRejected: not a safetensors file, another format version, a wrong checksum, another base, or an
            unknown layer; or a term has unknown or missing fields, a wrong shape or type, or a value that is
            not finite.
        EncoderMissing: its scopes rely on a scope encoder that this host does not have.
    """
    header, tensors = tensor_files.read(data, noun="delta", texts=("words", "texts"))
    if header.get("base_sha256") != base_sha256:
        raise DeltaRejected("The delta was made for other base weights.")
    layer = next((layer for layer in layers if layer.path == header.get("layer")), None)
    if layer is None:
        raise DeltaRejected(f"The delta names a layer that the model does not have: {header.get('layer')}.")
    return LayerDelta(layer.path, _terms(tensors, layer, _reader(header, readers)))


def _reader(header: Mapping[str, str], readers: Readers | None) -> Metric | ScopeEncoder | None:
    """What the scopes of a file with this header compare inputs with; None for a file without scopes."""
    if readers and "encoder" in header:
        return readers.encoder(header["encoder"])
    return readers.metric(header["metric"]) if readers and "metric" in header else None


def term_tensors(term: Term) -> dict[str, Tensor]:
    """The fields that a term's file holds."""
    holders = (term.scope, term) if isinstance(term, Scoped) else (term,)
    named = {field.name: getattr(holder, field.name) for holder in holders for field in fields(holder)}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def _terms(
    tensors: dict[str, Tensor], layer: Layer, reader: Metric | ScopeEncoder | None
) -> tuple[Term, ...]:
    grouped: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise DeltaRejected(f'The delta holds an unexpected tensor "{key[:80]}".')
        grouped.setdefault(int(match[1]), {})[match[2]] = tensor
    if sorted(grouped) != list(range(len(grouped))) or not grouped:
        raise DeltaRejected("The delta's terms are not numbered from 0 without gaps.")
    terms = [_term(grouped[index], reader) for index in range(len(grouped))]
    if sum(isinstance(term, Scoped) for term in terms) > 1:
        raise DeltaRejected("The delta holds more than one scoped term.")
    if not all(term.fits(layer) for term in terms):
        raise DeltaRejected(f"A term's shape does not fit {layer.path} [{layer.d_out}, {layer.d_in}].")
    return tuple(terms)


def _term(tensors: dict[str, Tensor], reader: Metric | ScopeEncoder | None) -> Term:
    names = frozenset(tensors)
    if any(tensor.dim() != _DIMENSIONS.get(name) for name, tensor in tensors.items()):
        raise _unknown(names)
    if names in _PLAIN:
        return _PLAIN[names](**tensors)
    own = {name: tensors[name] for name in names - _OF_ENTRIES}
    entries = {name: tensors[name] for name in names & _OF_ENTRIES}
    if len(entries) < len(_OF_ENTRIES) or own.keys() not in (_OF_STATE_SCOPE, _OF_TEXT_SCOPE):
        raise _unknown(names)
    if own.keys() == _OF_TEXT_SCOPE and isinstance(reader, ScopeEncoder):
        return Scoped(TextScope(reader, **own), **entries)
    if own.keys() == _OF_STATE_SCOPE and isinstance(reader, Metric):
        return Scoped(StateScope(reader, **own), **entries)
    raise DeltaRejected("The delta does not name what its scopes compare inputs with.")


def _unknown(names: Collection[str]) -> DeltaRejected:
    return DeltaRejected(f"A term with the fields {sorted(names)} is of no known kind.")
